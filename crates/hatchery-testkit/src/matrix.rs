//! The nested-cancel matrix: trees over backend × depth × breadth × trigger × load, each in a
//! process of its own, each checked for its outcome, its bound and what it leaves behind.

mod axis;
mod case;
mod limits;
mod load;
mod outcome;
mod report;
mod run;
mod scenario;
mod tree;

pub use axis::{Backend, Load, Trigger};
pub use case::{Case, Selection};
pub use limits::Impossible;
pub use report::{CaseReport, Leaks, MatrixReport, Outcome, Summary};
pub use run::{HARD_BOUND, INTERRUPTED, Plan, Stop, run, run_all};
pub use scenario::inside;
