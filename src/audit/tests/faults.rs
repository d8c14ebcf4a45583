//! Many writers, disks that fail, files that are moved away.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use crate::refusal::{Code, Refusal};

use super::*;

fn refused(refusal: Refusal) -> String {
    assert_eq!(refusal.code, Code::AuditUnavailable);
    let text = "nothing is allowed unrecorded, and the audit log is not writable: ";
    refusal.message.strip_prefix(text).unwrap().to_owned()
}

fn open_error(config: Config) -> String {
    Log::open(config).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_records_at_once_are_gapless_and_share_syncs() {
    let lab = Lab::new();
    let disk = Faulty::default();
    let (log, _) = disk.open(&lab);
    // All are in the queue before the writer gets at the second batch.
    let held = disk.0.lock().unwrap();
    let tasks: Vec<_> = (0..1000)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { write(&log, n).await })
        })
        .collect();
    drop(held);
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.unwrap(), Ok(n as u64));
    }
    log.close().await;
    assert_eq!(lab.findings(), [""; 0]);
    assert_eq!(lab.lines().len(), 1001);
    let mut messages = lab.messages();
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), 1001);
    let syncs = disk.0.lock().unwrap().syncs;
    assert!(syncs < 500, "{syncs}");
}

#[tokio::test]
async fn when_the_answer_is_there_so_is_the_line() {
    let lab = Lab::new();
    let disk = Faulty::default();
    disk.set(|faults| faults.short_writes = Some(7));
    let (log, opened) = disk.open(&lab);
    assert_eq!((opened.seq, opened.findings, opened.unavailable), (1, vec![], None));
    for n in 2..10 {
        let syncs = disk.0.lock().unwrap().syncs;
        write(&log, n).await.unwrap();
        assert_eq!(lab.messages().last().unwrap(), &format!("record {n}"));
        assert_eq!(disk.0.lock().unwrap().syncs, syncs + 1);
    }
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(lab.file()), 0o600);
    assert_eq!(mode(lab.state()), 0o700);
    assert_eq!(mode(lab.state().join(HEAD_FILE_NAME)), 0o600);
}

#[tokio::test]
async fn a_full_disk_refuses_cuts_its_piece_off_and_recovers() {
    let lab = Lab::new();
    let disk = Faulty::default();
    let (log, _) = disk.open(&lab);
    let whole = lab.text();
    let line = {
        write(&log, 2).await.unwrap();
        lab.text().len() - whole.len()
    };
    let whole = lab.text();
    for room in 0..line {
        disk.set(|faults| faults.room = Some(room));
        let message = refused(write(&log, 3).await.unwrap_err());
        let path = lab.file().display().to_string();
        let text = "No space left on device (os error 28): make room there";
        assert_eq!(message, format!("cannot write {path}: {text}"));
        assert_eq!(lab.text(), whole, "{room}");
    }
    disk.set(|faults| faults.room = None);
    assert_eq!(write(&log, 3).await, Ok(3));
    log.close().await;
    assert_eq!(lab.findings(), [""; 0]);
    assert_eq!(lab.lines().len(), 3);
}

#[tokio::test]
async fn a_piece_that_cannot_be_cut_off_blocks_until_it_can() {
    let lab = Lab::new();
    let disk = Faulty::default();
    let (log, _) = disk.open(&lab);
    let whole = lab.text();
    disk.set(|faults| (faults.room, faults.truncates_fail) = (Some(20), true));
    refused(write(&log, 2).await.unwrap_err());
    assert_eq!(lab.text().len(), whole.len() + 20);
    disk.set(|faults| faults.room = None);
    let message = refused(write(&log, 2).await.unwrap_err());
    let path = lab.file().display().to_string();
    let text = "Input/output error (os error 5): check the path, the disk and the kernel's log";
    assert_eq!(message, format!("cannot truncate {path}: {text}"));
    assert_eq!(lab.text().len(), whole.len() + 20);
    disk.set(|faults| faults.truncates_fail = false);
    assert_eq!(write(&log, 2).await, Ok(2));
    log.close().await;
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn what_is_written_but_not_synced_is_refused_and_taken_back() {
    let lab = Lab::new();
    let disk = Faulty::default();
    let (log, _) = disk.open(&lab);
    let whole = lab.text();
    disk.set(|faults| faults.syncs_fail = true);
    refused(write(&log, 2).await.unwrap_err());
    assert_eq!(lab.text(), whole);
    disk.set(|faults| faults.syncs_fail = false);
    assert_eq!(write(&log, 2).await, Ok(2));
    log.close().await;
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_lets_the_daemon_start_and_refuse() {
    let lab = Lab::new();
    let disk = Faulty::default();
    disk.set(|faults| faults.room = Some(5));
    let (log, opened) = disk.open(&lab);
    refused(opened.unavailable.unwrap());
    assert_eq!(opened.seq, 0);
    refused(write(&log, 2).await.unwrap_err());
    assert_eq!(read_head(&lab.state()).unwrap().position, None);
    disk.set(|faults| faults.room = None);
    write(&log, 2).await.unwrap();
    log.close().await;
    let start = concat!("Portcullis ", env!("CARGO_PKG_VERSION"), " started");
    assert_eq!(lab.messages(), [start, "record 2"]);
    assert_eq!(lab.findings(), [""; 0]);
}

/// A disk whose next sync hangs until the sender is dropped.
struct Hung(mpsc::Receiver<()>);

impl writer::Disk for Hung {
    fn sync(&mut self, _file: &fs::File) -> std::io::Result<()> {
        let _ = self.0.recv();
        Ok(())
    }
}

#[tokio::test]
async fn a_disk_that_hangs_refuses_and_so_does_a_full_queue() {
    let lab = Lab::new();
    let (release, hung) = mpsc::channel();
    release.send(()).unwrap();
    let (log, _) =
        Log::open_on(lab.config(), Box::new(Hung(hung)), Duration::from_millis(1)).unwrap();
    let stuck = "the disk did not take the record in time: check the disk";
    assert_eq!(refused(write(&log, 2).await.unwrap_err()), stuck);
    let full = "too many records wait for the disk: check the disk";
    let mut waits: Vec<_> = (0..2000).map(|n| Box::pin(write(&log, n))).collect();
    let mut reasons = Vec::new();
    for wait in &mut waits {
        if let Some(answer) = futures_util::FutureExt::now_or_never(wait.as_mut()) {
            reasons.push(refused(answer.unwrap_err()));
        }
    }
    // The batch that hangs holds up to 256, the queue 1024.
    assert!((720..=977).contains(&reasons.len()), "{}", reasons.len());
    assert!(reasons.iter().all(|reason| reason == full));
    drop(waits);
    drop(release);
}

/// A disk on which every other sync panics, from the second on.
struct Panicking(usize);

impl writer::Disk for Panicking {
    fn sync(&mut self, _file: &fs::File) -> std::io::Result<()> {
        self.0 += 1;
        assert!(self.0 % 2 == 1, "a fault of this test");
        Ok(())
    }
}

#[tokio::test]
async fn a_fault_in_the_writer_refuses_its_batch_and_no_other() {
    let lab = Lab::new();
    let wait = Duration::from_secs(60);
    let (log, _) = Log::open_on(lab.config(), Box::new(Panicking(0)), wait).unwrap();
    let fault = "a fault in Portcullis ended the write, its own log has the details";
    for seq in 2..5 {
        assert_eq!(refused(write(&log, 99).await.unwrap_err()), fault);
        assert_eq!(write(&log, seq).await, Ok(seq));
    }
    log.close().await;
    // What was refused is not there.
    let start = concat!("Portcullis ", env!("CARGO_PKG_VERSION"), " started");
    assert_eq!(lab.messages(), [start, "record 2", "record 3", "record 4"]);
    assert_eq!(lab.findings(), [""; 0]);
}

/// An observer that panics at one record, and at each that was refused.
#[derive(Debug)]
struct Touchy(u64);

impl Observer for Touchy {
    fn recorded(&self, _record: &Record, seq: u64) {
        assert!(seq != self.0, "a fault of this test");
    }

    fn unrecorded(&self, _record: &Record, _refusal: &Refusal) {
        panic!("a fault of this test");
    }
}

/// One that counts those that were refused.
#[derive(Debug, Default)]
struct Refusals(AtomicUsize);

impl Observer for Refusals {
    fn recorded(&self, _record: &Record, _seq: u64) {}

    fn unrecorded(&self, _record: &Record, _refusal: &Refusal) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_fault_of_an_observer_refuses_what_is_on_record_already() {
    let lab = Lab::new();
    let refusals = Arc::new(Refusals::default());
    let observers: Vec<Arc<dyn Observer>> = vec![Arc::new(Touchy(2)), refusals.clone()];
    let (log, _) = Log::open_observed(lab.config(), observers).unwrap();
    let fault = "a fault in Portcullis ended the write, its own log has the details";
    assert_eq!(refused(write(&log, 2).await.unwrap_err()), fault);
    // The fault of one is not that of another, nor of the writer.
    assert_eq!(refusals.0.load(Ordering::Relaxed), 1);
    assert_eq!(write(&log, 3).await, Ok(3));
    log.clone().close().await;
    let gone = "its writer has ended: restart Portcullis, its own log says why";
    assert_eq!(refused(write(&log, 4).await.unwrap_err()), gone);
    assert_eq!(refusals.0.load(Ordering::Relaxed), 2);
    assert_eq!(lab.lines().len(), 3);
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn a_head_that_is_removed_is_made_anew_and_that_is_on_record() {
    let told = "the audit log: its head, or the whole state directory with what was kept there, was \
                removed or replaced while Portcullis ran; it is made anew";
    let remove_head = |lab: &Lab| fs::remove_file(lab.state().join(HEAD_FILE_NAME)).unwrap();
    let remove_all = |lab: &Lab| fs::remove_dir_all(lab.state()).unwrap();
    let replace = |lab: &Lab| {
        let head = lab.state().join(HEAD_FILE_NAME);
        fs::copy(&head, head.with_extension("old")).unwrap();
        fs::rename(head.with_extension("old"), head).unwrap();
    };
    let ways: [&dyn Fn(&Lab); 3] = [&remove_head, &remove_all, &replace];
    for remove in ways {
        let lab = Lab::new();
        let (log, _) = lab.open();
        write(&log, 2).await.unwrap();
        remove(&lab);
        // The finding goes before what was handed in.
        assert_eq!(write(&log, 4).await, Ok(4));
        assert_eq!(lab.messages()[2..], [told, "record 4"]);
        assert_eq!(write(&log, 5).await, Ok(5));
        log.close().await;
        assert_eq!(read_head(&lab.state()).unwrap().position.unwrap().seq, 5);
        assert_eq!(lab.findings(), [""; 0]);
    }
}

#[tokio::test]
async fn a_closed_log_refuses() {
    let lab = Lab::new();
    let (log, _) = lab.open();
    log.clone().close().await;
    refused(write(&log, 2).await.unwrap_err());
    lab.open();
}

#[tokio::test]
async fn rotation_keeps_the_chain_across_files() {
    let lab = Lab::with_lines(3).await;
    let (log, opened) = lab.open();
    assert_eq!((opened.seq, opened.findings), (4, vec![]));
    let old = lab.directory.path().join("audit.jsonl.1");
    let older = lab.directory.path().join("audit.jsonl.2");
    fs::rename(lab.file(), &older).unwrap();
    write(&log, 5).await.unwrap();
    write(&log, 6).await.unwrap();
    // As logrotate's `create` does.
    fs::rename(lab.file(), &old).unwrap();
    fs::write(lab.file(), b"").unwrap();
    write(&log, 7).await.unwrap();
    log.close().await;
    assert_eq!(verify(&[&older, &old, &lab.file()], Some(&lab.state())), [""; 0]);
    assert_eq!(lab.messages(), ["record 7"]);
    assert_eq!(
        verify(&[&older, &lab.file()], Some(&lab.state())),
        ["audit.jsonl:1: seq 5 to 6 are missing before it"]
    );
}

#[tokio::test]
async fn a_log_emptied_in_place_goes_on_and_says_so() {
    let lab = Lab::new();
    let (log, _) = lab.open();
    write(&log, 2).await.unwrap();
    fs::File::options().write(true).open(lab.file()).unwrap().set_len(0).unwrap();
    write(&log, 3).await.unwrap();
    log.close().await;
    let finding = "the audit log: it was emptied in place, which can lose records; the chain \
                   stands at seq 2";
    assert_eq!(lab.messages(), [finding, "record 3"]);
    assert!(lab.lines()[0].contains(r#""event":"drift""#));
    assert_eq!(lab.findings(), [""; 0]);
}

#[tokio::test]
async fn a_log_cut_or_written_to_behind_the_writers_back_goes_on_and_says_so() {
    use std::io::Write;
    let lab = Lab::new();
    let (log, _) = lab.open();
    write(&log, 2).await.unwrap();
    let first = lab.lines()[0].len() as u64 + 1;
    fs::File::options().write(true).open(lab.file()).unwrap().set_len(first).unwrap();
    write(&log, 3).await.unwrap();
    let mut alien = fs::File::options().append(true).open(lab.file()).unwrap();
    alien.write_all(b"not a record\nat all").unwrap();
    write(&log, 5).await.unwrap();
    log.close().await;
    let torn = lab.directory.path().join("audit.jsonl.torn-5");
    assert_eq!(
        lab.messages()[1..],
        [
            "the audit log: it ends at seq 1, and seq 2 was written: lines are missing".to_owned(),
            "record 3".into(),
            format!(
                "the audit log: 19 bytes behind its last whole line were moved to {}",
                torn.display()
            ),
            "record 5".into(),
        ]
    );
    assert_eq!(fs::read(torn).unwrap(), b"not a record\nat all");
    assert_eq!(lab.findings(), ["audit.jsonl:2: seq 2 is missing before it"]);
}

#[tokio::test]
async fn two_daemons_do_not_share_a_log_or_a_state_directory() {
    let lab = Lab::new();
    let (log, _) = lab.open();
    let text = "is in use by another process: stop it, or give each daemon an audit file and a \
                state directory of its own";
    let head = lab.state().join(HEAD_FILE_NAME);
    assert_eq!(open_error(lab.config()), format!("{} {text}", head.display()));
    let config = Config { state_directory: lab.directory.path().join("2"), ..lab.config() };
    assert_eq!(open_error(config), format!("{} {text}", lab.file().display()));
    log.close().await;
    lab.open();
}

#[test]
fn what_is_no_log_is_not_written_to() {
    let lab = Lab::new();
    let path = lab.file().display().to_string();

    let config = Config { file: "/dev/full".into(), ..lab.config() };
    let text = "/dev/full is not a regular file: name one as the audit file";
    assert_eq!(open_error(config), text);

    fs::write(lab.file(), b"127.0.0.1 localhost\n").unwrap();
    let text = "holds something else than audit records: move it away, or name another file";
    assert_eq!(open_error(lab.config()), format!("{path} {text}"));
    assert_eq!(lab.text(), "127.0.0.1 localhost\n");
    fs::remove_file(lab.file()).unwrap();

    fs::write(lab.directory.path().join("target"), b"").unwrap();
    symlink("target", lab.file()).unwrap();
    let text = "Too many levels of symbolic links (os error 40): name the file itself, not a \
                symbolic link";
    assert_eq!(open_error(lab.config()), format!("cannot open {path}: {text}"));
    assert_eq!(fs::read(lab.directory.path().join("target")).unwrap(), b"");
}

#[test]
fn a_pipe_does_not_hold_up_the_start() {
    let lab = Lab::new();
    nix::unistd::mkfifo(&lab.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(
        open_error(lab.config()).ends_with("is not a regular file: name one as the audit file")
    );
}
