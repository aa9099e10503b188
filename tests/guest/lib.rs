//! A library in somebody else's program, as a module of Python is, that uses actors.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;

use hatchery::{Backend, Runtime, StartCause};
use hatchery_spawn::{ImageError, SpawnError};

/// What the actor runs.
#[hatchery::function]
pub async fn double(x: u64) -> u64 {
    2 * x
}

/// Starts an actor from `image`, or from the program that runs if that is null, and calls it.
///
/// 0: it answered. 1: a typed error says that this is a library. 2: the image was refused as one that
/// can't be a forkserver. 3: anything else, which is printed.
///
/// # Safety
/// `image` is null or a C string.
#[allow(unsafe_code, reason = "C calls this")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn guest_start(image: *const c_char, exec: c_int) -> c_int {
    // SAFETY: as the caller promises.
    let image = (!image.is_null()).then(|| unsafe { CStr::from_ptr(image) });
    let image = image.map(|image| OsStr::from_bytes(image.to_bytes()));
    let backend = if exec == 0 { Backend::Forkserver } else { Backend::Exec };
    match start(image, backend) {
        Ok(()) => 0,
        Err(StartCause::Spawn(SpawnError::Image { cause, .. })) => {
            if matches!(*cause, ImageError::SharedLibrary { .. }) {
                1
            } else if matches!(*cause, ImageError::Stranger { .. }) {
                2
            } else {
                show(&cause)
            }
        }
        Err(other) => show(&other),
    }
}

fn show(error: &dyn std::fmt::Debug) -> c_int {
    println!("{error:?}");
    3
}

fn start(image: Option<&OsStr>, backend: Backend) -> Result<(), StartCause> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio.expect("a tokio runtime").block_on(async {
        let builder = Runtime::builder().backend(backend);
        let builder = match image {
            Some(image) => builder.image(image),
            None => builder,
        };
        let runtime = builder.open().expect("a runtime");
        let mut refused = None;
        let answer = runtime
            .nursery(async |n| match n.start("it").await {
                Ok(it) => Ok(Some(it.call(double(21)).await?)),
                Err(error) => {
                    refused = Some(error.cause);
                    Ok(None)
                }
            })
            .await;
        runtime.close().await;
        assert!(matches!(answer, Ok(None | Some(42))), "{answer:?}");
        refused.map_or(Ok(()), Err)
    })
}
