//! A pool's connection while its answer is awaited.

use deadpool::managed::{Manager, Object};

use crate::error::Error;

/// A connection whose answer is awaited. It is closed and not given back when this is dropped, as when its caller waits no
/// longer: the answer that is outstanding, or never comes, would be the next caller's matter.
pub(crate) struct Awaited<M: Manager>(Option<Object<M>>);

impl<M: Manager> Awaited<M> {
    pub(crate) const fn new(connection: Object<M>) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn get(&mut self) -> Result<&mut M::Type, Error> {
        self.0.as_deref_mut().ok_or_else(|| Error::defect("a connection was used after it was given back"))
    }

    /// The connection, of which no answer is outstanding any more.
    pub(crate) const fn take(&mut self) -> Option<Object<M>> {
        self.0.take()
    }
}

impl<M: Manager> Drop for Awaited<M> {
    fn drop(&mut self) {
        self.0.take().map(Object::take);
    }
}
