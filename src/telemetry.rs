//! The daemon's own log, on standard error. It decides nothing, and it is not the audit log.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{IsTerminal, stderr},
    panic, thread,
};

use tracing_subscriber::EnvFilter;

use crate::image::shorten;

/// Variable that sets the level: `PORTCULLIS_LOG=debug`, or per module.
const VARIABLE: &str = "PORTCULLIS_LOG";

/// Begins logging; `default` is the level where the variable is not set.
pub(crate) fn start(default: &str) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let on_terminal = stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(on_terminal)
        .with_target(false)
        // A log that cannot be written is told of on standard error, by a macro that panics when
        // that cannot be written either; and here it is the same file.
        .log_internal_errors(false);
    // journald stamps each line itself.
    let started = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().try_init(),
        None => log.try_init(),
    };
    // Only a second call fails, and the first one's settings stay.
    let _ = started;
}

/// Tells every panic in the log, whichever thread it ends what on, and to `count`. A panic refuses
/// what it ends, and must not do so unseen.
pub(crate) fn tell_panics(count: impl Fn() + Send + Sync + 'static) {
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let why = shorten(panic.payload_as_str().unwrap_or("without a word"));
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        // RUST_BACKTRACE asks for one, as usual.
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => {
                tracing::error!(%place, thread, "{FAULT}: {why}\n{backtrace}")
            }
            _ => tracing::error!(%place, thread, "{FAULT}: {why}"),
        }
        count();
    }));
}

const FAULT: &str = "a fault in Portcullis, please report it";

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_logged_and_counted_and_what_it_says_cannot_act_on_a_terminal() {
        let (count, lines) = (Arc::new(AtomicUsize::new(0)), Lines::default());
        let (counted, writer) = (count.clone(), lines.clone());
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        tracing::subscriber::with_default(log.finish(), || {
            tell_panics(move || {
                let _ = counted.fetch_add(1, Ordering::Relaxed);
            });
            let ended = panic::catch_unwind(|| panic!("of this \x1b[2J test"));
            drop(panic::take_hook());
            assert!(ended.is_err());
        });
        // Other tests of this process may have panicked meanwhile, on purpose.
        assert!(count.load(Ordering::Relaxed) >= 1);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("ERROR") && text.contains(FAULT), "{text}");
        assert!(text.contains("place=src/telemetry.rs:"), "{text}");
        assert!(text.contains("of this") && !text.contains('\x1b'), "{text}");
    }
}
