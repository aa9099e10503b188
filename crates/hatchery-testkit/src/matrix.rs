//! The nested-cancel matrix: trees over backend × depth × breadth × trigger, each in a process of
//! its own, each checked for its outcome, its bound and what it leaves behind.

mod axis;
mod case;
mod report;
mod run;
mod scenario;
mod tree;

pub use axis::{Backend, Trigger};
pub use case::{Case, Impossible, Selection};
pub use report::{CaseReport, Leaks, MatrixReport, Outcome, Summary};
pub use run::{HARD_BOUND, Plan, Stop, run, run_all};
pub use scenario::inside;
