//! The axes with few values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! axis {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// What the command line calls it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().find(|value| value.name() == text).copied().ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|value| value.name()).collect();
                    format!("`{text}` is none of {}", all.join(", "))
                })
            }
        }
    };
}

axis! {
    /// How actors are brought to life.
    Backend {
        /// Forked processes.
        Forkserver = "forkserver",
        /// Threads.
        Thread = "thread",
        /// Processes with a fresh image.
        Exec = "exec",
    }
}

axis! {
    /// What ends the tree.
    Trigger {
        /// The root's body returns.
        Return = "return",
        /// One leaf returns an error.
        LeafError = "leaf-error",
        /// All leaves return errors at once.
        AllLeavesError = "all-leaves-error",
        /// An actor between root and leaves returns an error.
        MiddleError = "middle-error",
        /// The root's body returns an error.
        RootError = "root-error",
        /// Another task cancels the root's nursery.
        Cancel = "cancel",
        /// A time-out around the root's nursery.
        Timeout = "timeout",
        /// The future of the root's nursery is dropped.
        Drop = "drop",
        /// SIGINT to the root.
        Sigint = "sigint",
        /// SIGKILL to a leaf.
        SigkillLeaf = "sigkill-leaf",
        /// SIGKILL to an actor between root and leaves.
        SigkillMiddle = "sigkill-middle",
    }
}

axis! {
    /// What goes on between the actors of the tree when it ends.
    Load {
        /// Nothing.
        Idle = "idle",
        /// Every actor is called by its spawner again and again.
        Calling = "calling",
        /// Every actor has two contexts with its spawner: one in which both sides send and read,
        /// one in which the spawner reads nothing.
        Streaming = "streaming",
        /// Every actor was introduced to its next sibling, an only child to its spawner, and has
        /// a context with that one in which both send and read.
        Peers = "peers",
    }
}
