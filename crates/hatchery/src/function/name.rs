//! What a function is called: its path for people, its place in the source beside it, so that no two
//! functions share a name.

use std::fmt;

/// The name of a function, the same in every process of a tree (C20).
///
/// A path alone is no name: two functions in blocks of one function share it, and a macro can make
/// several at one place. So path, place and a mark of the function's own text together are the name; what
/// collides even then is an error of the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    path: &'static str,
    /// File, line and column, and after a `#` the mark.
    place: &'static str,
}

impl Name {
    /// A name of those two.
    #[must_use]
    pub const fn new(path: &'static str, place: &'static str) -> Self {
        Self { path, place }
    }

    /// The name of the function whose body this is, at that place. For the attribute's expansion.
    #[must_use]
    pub fn of<F>(_body: &F, place: &'static str) -> Self {
        // `type_name` knows the `impl` block and the functions around; `module_path` doesn't.
        let path = std::any::type_name::<F>();
        Self { path: path.strip_suffix("::__body").unwrap_or(path), place }
    }

    /// Its path: of modules, `impl` blocks and functions around it.
    pub(crate) fn path(self) -> &'static str {
        self.path
    }

    /// As it travels.
    pub(crate) fn wire(self) -> String {
        [self.path, BETWEEN, self.place].concat()
    }

    /// Where it stands in the source.
    pub(crate) fn place(self) -> &'static str {
        place(self.place)
    }
}

/// Path and place of a name that has come.
pub(crate) fn parts(wire: &str) -> (&str, &str) {
    wire.split_once(BETWEEN).unwrap_or((wire, ""))
}

/// The path in a name that has come, for people.
pub(crate) fn path(wire: &str) -> &str {
    parts(wire).0
}

fn place(with_mark: &str) -> &str {
    with_mark.rsplit_once('#').map_or(with_mark, |(place, _)| place)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)
    }
}

/// Two functions of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Twins {
    pub(crate) path: &'static str,
    pub(crate) places: [&'static str; 2],
}

/// All functions of one kind in this image, found by name.
pub(crate) struct Table<F: 'static> {
    sorted: Vec<(Name, &'static F)>,
    twins: Option<Twins>,
}

impl<F> Table<F> {
    pub(crate) fn of(all: impl Iterator<Item = (Name, &'static F)>) -> Self {
        let mut sorted: Vec<_> = all.collect();
        sorted.sort_unstable_by_key(|(name, _)| *name);
        let twins = sorted.windows(2).find(|two| two[0].0 == two[1].0).map(|two| {
            let [one, other] = [two[0].0, two[1].0];
            Twins { path: one.path, places: [one.place(), other.place()] }
        });
        Self { sorted, twins }
    }

    /// Two of them that share a name, if any do.
    pub(crate) fn twins(&self) -> Option<&Twins> {
        self.twins.as_ref()
    }

    /// The one of that name.
    ///
    /// # Errors
    /// Why it isn't found, for people; `what` says what is looked for.
    pub(crate) fn find(&self, wire: &str, what: &str) -> Result<&'static F, String> {
        let wanted = parts(wire);
        let by_name = |(name, _): &(Name, _)| (name.path, name.place).cmp(&wanted);
        match (self.sorted.binary_search_by(by_name), &self.twins) {
            (Ok(at), None) => Ok(self.sorted[at].1),
            (Ok(_), Some(twins)) => Err(twins.to_string()),
            (Err(at), _) => Err(self.unknown(wanted, at, what)),
        }
    }

    fn unknown(&self, (path, at_place): (&str, &str), at: usize, what: &str) -> String {
        let count = self.sorted.len();
        let near = at.checked_sub(1).into_iter().chain([at]);
        let namesake =
            near.filter_map(|at| self.sorted.get(at)).find(|(name, _)| name.path == path);
        let other = namesake.map_or_else(String::new, |(name, _)| {
            format!(
                "; it has one at {}, and the caller means the one at {}",
                name.place(),
                place(at_place)
            )
        });
        format!("no {what} `{path}` among the {count} of this image{other}")
    }
}

impl fmt::Display for Twins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, places: [one, other] } = self;
        write!(f, "two functions are called `{path}`, at {one} and at {other}: rename one of them")
    }
}

/// No path of a function has it.
const BETWEEN: &str = "@";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

    use super::*;

    fn table(names: &'static [(&str, &str)]) -> Table<&'static str> {
        Table::of(names.iter().map(|(path, place)| (Name::new(path, place), path)))
    }

    /// C20: a path at another place is another function.
    #[test]
    fn a_name_is_path_and_place() {
        let two = table(&[("a::work", "b.rs:9:1#1"), ("a::work", "a.rs:3:1#1")]);
        assert!(two.twins().is_none());
        let found = two.find(&Name::new("a::work", "b.rs:9:1#1").wire(), "function").unwrap();
        assert!(std::ptr::eq(*found, "a::work") || *found == "a::work");
        let moved = Name::new("a::work", "b.rs:8:1#1").wire();
        let unknown = two.find(&moved, "function").unwrap_err();
        assert!(unknown.contains("no function `a::work` among the 2 of this image"), "{unknown}");
        assert!(unknown.contains("has one at a.rs:3:1") || unknown.contains("has one at b.rs:9:1"));
        assert!(unknown.ends_with("means the one at b.rs:8:1"), "{unknown}");
        let none = two.find("b::work@c.rs:1:1#1", "function").unwrap_err();
        assert_eq!(none, "no function `b::work` among the 2 of this image");
    }

    /// C20: what is the same in all of it is told with both places, and never run.
    #[test]
    fn two_of_one_name_are_told_and_neither_is_run() {
        let twice =
            table(&[("a::f", "a.rs:1:1#1"), ("a::g", "a.rs:2:1#1"), ("a::f", "a.rs:1:1#1")]);
        let told = twice.twins().unwrap().to_string();
        assert!(told.contains("`a::f`, at a.rs:1:1 and at a.rs:1:1"), "{told}");
        assert_eq!(twice.find("a::f@a.rs:1:1#1", "function").unwrap_err(), told);
    }
}
