//! What is mapped where in this process, as the kernel lists it. See proc_pid_maps(5).

use std::fs;

/// All mappings, in the order of their addresses.
pub(crate) struct Maps(Vec<Mapping>);

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    from: u64,
    to: u64,
    /// Whether it may be executed.
    pub(crate) is_code: bool,
    /// The file's path, with ` (deleted)` behind it if that is so; empty if it is of no file.
    pub(crate) file: String,
}

impl Maps {
    /// `None` if there is no `/proc`.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read("/proc/self/maps").ok()?;
        Some(Self(String::from_utf8_lossy(&text).lines().filter_map(Mapping::parse).collect()))
    }

    /// The mapping that an address is in.
    pub(crate) fn at(&self, address: u64) -> Option<&Mapping> {
        self.0.iter().find(|map| (map.from..map.to).contains(&address))
    }
}

impl Mapping {
    /// Bytes from an address in it to its end.
    pub(crate) fn room(&self, address: u64) -> usize {
        usize::try_from(self.to.saturating_sub(address)).unwrap_or(usize::MAX)
    }

    fn parse(line: &str) -> Option<Self> {
        // Addresses, rights, offset, device, inode; then the path, which may have blanks in it.
        let mut fields = line.splitn(6, ' ');
        let (from, to) = fields.next()?.split_once('-')?;
        let is_code = fields.next()?.contains('x');
        let file = fields.nth(3).unwrap_or_default().trim_start().to_owned();
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { from: number(from)?, to: number(to)?, is_code, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_understood() {
        let line = "7f00-7f80 r-xp 00001000 fe:00 123                        /a dir/lib (deleted)";
        let map = Mapping::parse(line).unwrap();
        assert_eq!((map.from, map.to, map.is_code), (0x7f00, 0x7f80, true));
        assert_eq!(map.file, "/a dir/lib (deleted)");
        assert_eq!(map.room(0x7f70), 0x10);
        assert_eq!(Mapping::parse("0-1 rw-p 00000000 00:00 0 ").unwrap().file, "");
    }

    #[test]
    fn code_of_ours_is_in_a_file_of_ours() {
        let maps = Maps::read().unwrap();
        let here = Maps::read as fn() -> _ as usize as u64;
        let map = maps.at(here).unwrap();
        assert!(map.is_code);
        assert_eq!(map.file, std::env::current_exe().unwrap().to_str().unwrap());
    }
}
