//! Why a forkserver serves no more. Pure.

use crate::error::{PreloadError, SpawnError};

/// What everybody is told who still waits for a forkserver, or asks for more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It has ended, or could not start.
    Why(String),
    /// A preload of the program did not end well.
    Preload(PreloadError),
}

impl Gone {
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Why(why) => why.clone(),
            Self::Preload(error) => error.to_string(),
        }
    }

    /// The error of a spawn of `name`.
    pub(crate) fn error(&self, name: String) -> SpawnError {
        match self.clone() {
            Self::Why(why) => SpawnError::ServerGone { name, why },
            Self::Preload(error) => SpawnError::Preload { name, cause: Box::new(error) },
        }
    }
}

impl From<&str> for Gone {
    fn from(why: &str) -> Self {
        Self::Why(why.to_owned())
    }
}

impl From<String> for Gone {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}
