//! What the chat gateway publishes: each event is read, its effect applied, then acknowledged.
//!
//! The files are layers, the lowest first. Each uses only files that stand before it in this list:
//!
//! 1. `subjects`: the names of the streams and their subjects
//! 2. [`envelope`]: events as JSON
//! 3. [`fitness`]: judges the settings of the streams and of the consumer
//! 4. `error`: why events are not read
//! 5. [`fault`]: whether the store, a community or an event is at fault
//! 6. `outcome`: what becomes of an event
//! 7. [`stream`]: creates and inspects the streams
//! 8. `delivery`: a delivered message, and the event in it
//! 9. `ready`: owners that wait for a lane, shard by shard
//! 10. `queue`: a fair queue over communities
//! 11. `losses`: counts events that the stream dropped
//! 12. `ack`: every acknowledgement
//! 13. `durable`: the durable consumer, its streams and its configuration
//! 14. [`dead_letter`]: events that can never be applied
//! 15. `shared_queue`: the queue that the reader fills and the lanes empty
//! 16. `lane`: applies batches
//! 17. `loss_watch`: looks for losses from time to time
//! 18. `reader`: fills the queue
//! 19. [`consumer`]: the way in

mod ack;
pub mod consumer;
pub mod dead_letter;
mod delivery;
mod durable;
pub mod envelope;
pub(crate) mod error;
pub mod fault;
pub mod fitness;
mod lane;
mod loss_watch;
mod losses;
mod outcome;
mod queue;
mod reader;
mod reading;
mod ready;
mod shared_queue;
pub mod stream;
pub mod subjects;
