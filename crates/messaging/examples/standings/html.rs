//! HTML in the making, in which no text from outside can become markup.

use std::fmt::{Display, Write};

/// A piece of HTML. Markup is only what stands in this program; everything else is text.
#[derive(Debug, Default)]
pub(crate) struct Html(String);

impl Html {
    /// Adds markup. That it is `'static` keeps what was read or received out of here.
    pub(crate) fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text, escaped for an element's content and for an attribute's value in double quotes.
    pub(crate) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a `String` does not fail.
        let _ = write!(Escaping(&mut self.0), "{text}");
        self
    }

    /// Adds HTML that was made like this.
    pub(crate) fn add(&mut self, html: Self) -> &mut Self {
        self.0.push_str(&html.0);
        self
    }

    /// The HTML as it is sent.
    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}
