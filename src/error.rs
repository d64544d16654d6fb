//! Errors: a [`Fault`] says what is wrong without knowing where; an [`Error`] adds the file, phase and node.

use std::fmt;

/// What is wrong, in words for the user, with an optional way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    message: String,
    hint: Option<String>,
    /// The operator has no implementation: distinguishes "not built" from "wrong".
    unimplemented: bool,
}

impl Fault {
    /// A fault with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, unimplemented: false }
    }

    /// An operator, type or variant that qonnx does not implement.
    pub fn unimplemented(what: impl fmt::Display) -> Self {
        const PREFIX: &str = "not implemented: ";
        let what = what.to_string();
        let message = if what.starts_with(PREFIX) { what } else { format!("{PREFIX}{what}") };
        Self { message, hint: None, unimplemented: true }
    }

    /// Adds a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Is this "not implemented" rather than "wrong"?
    pub fn is_unimplemented(&self) -> bool {
        self.unimplemented
    }

    /// Puts the fault in a place: `phase` (`shape inference`), then the node it happened at.
    pub fn at(self, place: impl fmt::Display) -> Error {
        Error { place: place.to_string(), fault: self }
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {})", one_line(hint))?;
        }
        Ok(())
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<ndarray::ShapeError> for Fault {
    fn from(error: ndarray::ShapeError) -> Self {
        Self::new(format!("shapes do not fit: {error}"))
    }
}

/// Returns early with a [`Fault`] made from a format string.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::error::Fault::new(format!($($arg)*))) };
}

/// A fault and the place where it happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", one_line(.place))]
pub struct Error {
    place: String,
    fault: Fault,
}

impl Error {
    /// The fault without its place.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// Where it happened.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Puts the error in a wider place, such as the file.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Self {
        Self { place: format!("{place}: {}", self.place), fault: self.fault }
    }
}

/// Text from a model on one terminal line: control characters escaped, length bounded.
pub fn one_line(text: &str) -> String {
    const LIMIT: usize = 600;
    let mut line: String = text
        .chars()
        .take(LIMIT)
        .flat_map(|c| {
            let escape = c.is_control();
            escape.then(|| c.escape_default()).into_iter().flatten().chain((!escape).then_some(c))
        })
        .collect();
    if text.chars().nth(LIMIT).is_some() {
        line.push('…');
    }
    line
}
