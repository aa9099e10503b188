//! The file that this program can be started from again: as a forkserver, or as an exec'd actor.
//!
//! Mostly that is `/proc/self/exe`, which also works when the file was deleted or replaced. It is
//! another file if the program was started through the dynamic loader or under an emulator, and there
//! is none if this code is in a shared library of somebody else's program.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::ImageError;
use crate::maps::Maps;
use crate::sys::auxv;

/// Where to start this program from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnImage(PathBuf);

impl OwnImage {
    /// The program that runs here.
    ///
    /// # Errors
    /// [`ImageError::SharedLibrary`], [`ImageError::Deleted`].
    pub(crate) fn find() -> Result<Self, ImageError> {
        Seen::look().map_or_else(|| Ok(Self(EXE.into())), |seen| seen.judge())
    }

    /// A program that the user names instead.
    ///
    /// # Errors
    /// [`ImageError::Unreadable`]; [`ImageError::Stranger`]: it is no program that can be a
    /// forkserver, and would run its own `main`.
    pub(crate) fn named(path: &Path) -> Result<Self, ImageError> {
        let unreadable = |cause| ImageError::Unreadable { path: path.to_owned(), cause };
        match has_mark(path).map_err(unreadable)? {
            true => Ok(Self(path.to_owned())),
            false => Err(ImageError::Stranger { path: path.to_owned() }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// What the kernel and the loader say about this process.
struct Seen {
    /// The file that was executed, as a path.
    exe: String,
    /// Whether that path leads to what was executed.
    exe_is_there: bool,
    /// The file of the main program, as the loader sees it.
    program: String,
    /// The file that this code is in.
    code: String,
}

impl Seen {
    /// `None` if it can't be known: without `/proc`, or where code is no file's any more.
    fn look() -> Option<Self> {
        let maps = Maps::read()?;
        let file_at = |address: usize| {
            let file = maps.at(u64::try_from(address).ok()?)?.file.clone();
            file.starts_with('/').then_some(file)
        };
        let exe = fs::read_link(EXE).ok()?.into_os_string().into_string().ok()?;
        let id = |path: &str| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        // Under an emulator the path is the program's and the file the emulator's.
        let exe_is_there = exe.ends_with(DELETED) || id(&exe).is_none() || id(&exe) == id(EXE);
        let code = file_at(has_mark as fn(&Path) -> io::Result<bool> as usize)?;
        let program = file_at(auxv::program_headers()).unwrap_or_else(|| code.clone());
        Some(Self { exe, exe_is_there, program, code })
    }

    fn judge(self) -> Result<OwnImage, ImageError> {
        let (exe, program, code) = (self.exe, self.program, self.code);
        if code != program {
            return Err(ImageError::SharedLibrary {
                library: code.into(),
                program: program.into(),
            });
        }
        if code == exe && self.exe_is_there {
            return Ok(OwnImage(EXE.into()));
        }
        match code.strip_suffix(DELETED) {
            Some(path) => Err(ImageError::Deleted { path: path.into(), loader: exe.into() }),
            None => Ok(OwnImage(code.into())),
        }
    }
}

/// Whether a file is a program that this version of the crate is linked into.
fn has_mark(path: &Path) -> io::Result<bool> {
    let mut file = fs::File::open(path)?;
    let mut seen: Vec<u8> = Vec::with_capacity(CHUNK + MARK.len());
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            return Ok(false);
        }
        seen.extend(&chunk[..length]);
        if seen.windows(MARK.len()).any(|found| found == MARK) {
            return Ok(true);
        }
        let keep = seen.len().saturating_sub(MARK.len() - 1);
        seen.drain(..keep);
    }
}

/// In every program that can be a forkserver of this version.
#[used]
static MARK: &[u8] = concat!("hatchery-spawn image ", env!("CARGO_PKG_VERSION"), ";").as_bytes();

const EXE: &str = "/proc/self/exe";
/// What the kernel puts behind the path of a file that has no name any more.
const DELETED: &str = " (deleted)";
const CHUNK: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(exe: &str, exe_is_there: bool, program: &str, code: &str) -> Result<PathBuf, String> {
        let (exe, program, code) = (exe.to_owned(), program.to_owned(), code.to_owned());
        let judged = Seen { exe, exe_is_there, program, code }.judge();
        judged.map(|image| image.0).map_err(|error| error.to_string())
    }

    #[test]
    fn the_image_is_what_was_executed_unless_something_stands_between() {
        let exe = Ok(PathBuf::from(EXE));
        assert_eq!(judged("/bin/it", true, "/bin/it", "/bin/it"), exe);
        // Deleted or replaced since.
        let gone = "/bin/it (deleted)";
        assert_eq!(judged(gone, true, gone, gone), exe);
        // By the loader, and under an emulator that shows the program's path for its own.
        assert_eq!(judged("/lib/ld.so", true, "/bin/it", "/bin/it"), Ok("/bin/it".into()));
        assert_eq!(judged("/bin/it", false, "/bin/it", "/bin/it"), Ok("/bin/it".into()));
        let error = judged("/lib/ld.so", true, gone, gone).unwrap_err();
        assert!(error.contains("/lib/ld.so") && error.contains("/bin/it"), "{error}");
        let error = judged("/bin/python", true, "/bin/python", "/it.so").unwrap_err();
        assert!(error.contains("/bin/python") && error.contains("/it.so"), "{error}");
    }

    #[test]
    fn this_test_has_a_mark_and_others_have_none() {
        assert_eq!(OwnImage::find().unwrap().path(), Path::new(EXE));
        assert!(has_mark(Path::new(EXE)).unwrap());
        assert!(!has_mark(Path::new("/bin/sh")).unwrap());
        assert!(matches!(OwnImage::named(Path::new("/bin/sh")), Err(ImageError::Stranger { .. })));
        let none = OwnImage::named(Path::new("/no/such/program"));
        assert!(matches!(none, Err(ImageError::Unreadable { .. })));
    }
}
