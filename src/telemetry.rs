//! The daemon's own log, on standard error. It decides nothing, and it is not the audit log.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{IsTerminal, stderr},
    panic, thread,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::Directive};

use crate::image::shorten;

/// Variable that sets the level: `PORTCULLIS_LOG=debug`, or per module.
const VARIABLE: &str = "PORTCULLIS_LOG";
/// What it knows, for people.
const LEVELS: &str = "error, warn, info, debug, trace";

/// Begins logging; `default` is the level where the variable is not set, and where it cannot be
/// understood, which is warned of.
pub(crate) fn start(default: LevelFilter) {
    let value = std::env::var_os(VARIABLE).unwrap_or_default();
    let (filter, misunderstood) = filter(&value.to_string_lossy(), default);
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
    if let Some(warning) = misunderstood {
        tracing::warn!("{warning}");
    }
}

/// What a value of the variable asks for, or the default and a warning. A log that is silent by
/// mistake, errors too, is found out on the day that it is needed: modules are set beside the
/// default, and not in its place.
fn filter(value: &str, default: LevelFilter) -> (EnvFilter, Option<String>) {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut filter = EnvFilter::new(default.to_string());
    for part in parts {
        match directive(part) {
            Some(directive) => filter = filter.add_directive(directive),
            None => {
                let warning = format!(
                    "{VARIABLE}: \"{}\" is not understood, and the level is {default}; known \
                     levels: {LEVELS}; of one module: portcullis::resolve=debug",
                    shorten(part)
                );
                return (EnvFilter::new(default.to_string()), Some(warning));
            }
        }
    }
    (filter, None)
}

/// A level, or `module=level`. The library also takes a lone word for a module, all of which is
/// then logged and nothing else: here that is a level misspelt.
fn directive(part: &str) -> Option<Directive> {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
    // Nothing would be a level too: all of them.
    (!level.is_empty() && level.parse::<LevelFilter>().is_ok()).then(|| part.parse().ok())?
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

    fn asked(value: &str) -> (String, Option<String>) {
        let (filter, warning) = filter(value, LevelFilter::INFO);
        (filter.to_string(), warning)
    }

    #[test]
    fn levels_and_modules_are_understood() {
        for (value, expected) in [
            ("", "info"),
            (" , ", "info"),
            ("debug", "debug"),
            ("WARN", "warn"),
            ("off", "off"),
            ("portcullis::resolve=debug", "portcullis::resolve=debug,info"),
            ("error, portcullis::resolve=trace", "portcullis::resolve=trace,error"),
        ] {
            assert_eq!(asked(value), (expected.to_owned(), None), "{value:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told_and_silences_nothing() {
        for (value, named) in [
            ("loud", "loud"),
            ("warning", "warning"),
            ("debug,verbose", "verbose"),
            ("portcullis::resolve", "portcullis::resolve"),
            ("portcullis=loud", "portcullis=loud"),
            ("portcullis=", "portcullis="),
            ("[=debug", "[=debug"),
            ("\x1b[2J", "\\u{1b}[2J"),
        ] {
            let warning = format!(
                "PORTCULLIS_LOG: \"{named}\" is not understood, and the level is info; known \
                 levels: error, warn, info, debug, trace; of one module: portcullis::resolve=debug"
            );
            assert_eq!(asked(value), ("info".to_owned(), Some(warning)), "{value:?}");
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
