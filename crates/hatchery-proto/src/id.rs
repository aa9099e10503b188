//! Names and numbers of actors and calls.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of an actor among its siblings: 1 to 64 letters, digits, `_`, `-` or `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActorName(String);

/// A text that can't be an actor's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name for an actor: 1 to 64 letters, digits, `_`, `-` or `.`")]
pub struct BadName(pub String);

impl ActorName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`BadName`] if it is empty, too long or has another character.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let fits = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if fits { Ok(Self(name.to_owned())) } else { Err(BadName(name.to_owned())) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ActorName {
    type Error = BadName;
    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(&name)
    }
}

impl From<ActorName> for String {
    fn from(name: ActorName) -> Self {
        name.0
    }
}

impl fmt::Display for ActorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an actor stands in its tree: `root`, `root/worker`, `root/worker/leaf`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActorPath(String);

impl ActorPath {
    /// The path of the root process.
    #[must_use]
    pub fn root() -> Self {
        Self(ROOT.to_owned())
    }

    /// The path of a child.
    #[must_use]
    pub fn child(&self, name: &ActorName) -> Self {
        Self(format!("{}/{}", self.0, name))
    }

    /// The path that a text names: `root`, or names below it with slashes between.
    ///
    /// # Errors
    /// [`BadName`] with the first part that is no name.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let mut parts = text.split('/');
        if parts.next() != Some(ROOT) {
            return Err(BadName(text.to_owned()));
        }
        parts.try_fold(Self::root(), |path, name| Ok(path.child(&ActorName::new(name)?)))
    }

    /// The spawner's path; the root has none.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The last part.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// How many spawners stand above: 0 for the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Whether `self` is in the subtree below `other`, and not `other` itself.
    #[must_use]
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ActorPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call on one connection; the caller counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(u64);

impl CallId {
    /// The call with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}", self.0)
    }
}

/// An actor within its nursery; the nursery counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(pub(crate) u64);

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {}", self.0)
    }
}

const ROOT: &str = "root";
