//! The log as a whole, on real files.

mod chain;
mod faults;
mod restart;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{chain::*, *};

/// A log in a directory of its own.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("audit.jsonl")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn config(&self) -> Config {
        Config { file: self.file(), state_directory: self.state(), node: "node-1".into() }
    }

    fn open(&self) -> (Log, Opened) {
        Log::open(self.config()).unwrap()
    }

    /// A log with a `start` record and as many others as it takes to have so many lines.
    async fn with_lines(count: u64) -> Self {
        let lab = Self::new();
        let (log, _) = lab.open();
        for n in 2..=count {
            write(&log, n).await.unwrap();
        }
        log.close().await;
        assert_eq!(lab.lines().len(), count as usize);
        lab
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    fn messages(&self) -> Vec<String> {
        self.lines().iter().map(|line| message(line)).collect()
    }

    /// All findings in the log alone, as the head has it.
    fn findings(&self) -> Vec<String> {
        verify(&[&self.file()], Some(&self.state()))
    }
}

fn message(line: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["message"].as_str().unwrap().to_owned()
}

fn verify(files: &[&Path], state: Option<&Path>) -> Vec<String> {
    let head = state.map(|state| {
        let reading = read_head(state).unwrap();
        assert_eq!(reading.damaged, 0);
        reading.position.unwrap()
    });
    let mut verifier = Verifier::new(head);
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        verifier.read(name, &std::fs::read(file).unwrap()[..]).unwrap();
    }
    let findings = verifier.finish().findings;
    findings
        .into_iter()
        .map(|found| format!("{}:{}: {}", found.file, found.line, found.message))
        .collect()
}

async fn write(log: &Log, n: u64) -> Result<u64, crate::refusal::Refusal> {
    let record = Record::new(Event::Pull, format!("record {n}"));
    log.record(record, n).await.map(Recorded::into_inner)
}

/// What [`Faulty`] does, and what it saw.
#[derive(Debug, Default)]
struct Faults {
    /// Bytes that still fit on the disk; absent: all.
    room: Option<usize>,
    syncs_fail: bool,
    truncates_fail: bool,
    /// Most bytes that one write takes.
    short_writes: Option<usize>,
    syncs: usize,
}

/// A disk that fails as told.
#[derive(Clone, Debug, Default)]
struct Faulty(Arc<Mutex<Faults>>);

impl Faulty {
    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().unwrap());
    }

    fn open(&self, lab: &Lab) -> (Log, Opened) {
        let wait = std::time::Duration::from_secs(60);
        Log::open_on(lab.config(), Box::new(self.clone()), wait).unwrap()
    }
}

impl writer::Disk for Faulty {
    fn write(&mut self, mut file: &std::fs::File, bytes: &[u8]) -> std::io::Result<usize> {
        use std::io::Write;
        let mut faults = self.0.lock().unwrap();
        let most = bytes.len().min(faults.short_writes.unwrap_or(usize::MAX));
        let count = match &mut faults.room {
            None => file.write(&bytes[..most])?,
            Some(0) => return Err(nix::errno::Errno::ENOSPC.into()),
            Some(room) => {
                let count = file.write(&bytes[..most.min(*room)])?;
                *room -= count;
                count
            }
        };
        Ok(count)
    }

    fn sync(&mut self, file: &std::fs::File) -> std::io::Result<()> {
        let mut faults = self.0.lock().unwrap();
        faults.syncs += 1;
        if faults.syncs_fail { Err(nix::errno::Errno::EIO.into()) } else { file.sync_data() }
    }

    fn truncate(&mut self, file: &std::fs::File, length: u64) -> std::io::Result<()> {
        let faults = self.0.lock().unwrap();
        if faults.truncates_fail {
            Err(nix::errno::Errno::EIO.into())
        } else {
            file.set_len(length)
        }
    }
}
