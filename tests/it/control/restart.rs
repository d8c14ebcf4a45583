//! What a restart finds: directories that are gone, and a state directory that somebody edited.

use std::{fs::File, os::unix::fs::symlink, path::Path};

use super::{bundles::Origin, *};

const RECALLED: &str = "policy set that this node had last, in force: 1 policy";
const IN_FORCE: &str = "policy set in force: 1 policy";
const USELESS: &str = "the policies that were kept on this node are of no use: ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_broke_meanwhile_takes_nothing_from_what_was_kept() {
    let node = Node::new();
    let mut gate = Setup::before(node.runtime.socket())
        .policy("p.yaml", &node.lets_in("app").to_string())
        .start();
    node.starts(&gate, "app").await;
    let good = gate.records("policy")[0]["policy_set"].clone();
    let directory = gate.path().join("policies");
    for (what, why) in [("broken", "/p.yaml:1:"), ("gone", ": ")] {
        gate.crash();
        match what {
            "broken" => fs::write(directory.join("p.yaml"), "kind: [").unwrap(),
            _ => fs::remove_dir_all(&directory).unwrap(),
        }
        let before = gate.records("policy").len();
        gate.start_again();
        let records = gate.records("policy");
        assert_eq!(records[before]["message"], RECALLED, "{what}");
        assert_eq!(records[before]["policy_set"], good);
        let said = records[before + 1]["message"].as_str().unwrap();
        let stays = "policies are not loaded, the set in force stays: ";
        assert!(said.starts_with(&format!("{stays}{}{why}", directory.display())), "{said}");
        node.starts(&gate, "app").await;
        node.is_not_covered(&gate, "other").await;
        assert_eq!(trouble(&gate).0, "Rejected");
        assert_eq!(status(&gate)["enforcing"], true);
        assert_eq!(reload(&gate).await, said, "{what}");
    }
    // With nothing kept there is nothing.
    gate.crash();
    fs::remove_dir_all(gate.path().join("state")).unwrap();
    gate.start_again();
    let answer = node.pull(&gate, "app").await;
    let why = format!("{NONE}{}: ", directory.display());
    assert!(answer.1.contains(&why), "{answer:?}");
    serves(&gate).await;
    // What is there again counts, whatever was kept.
    let before = gate.records("policy").len();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("p.yaml"), node.lets_in("other").to_string()).unwrap();
    comes_to(&gate, before, IN_FORCE).await;
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_from_a_copy_turns_no_bundle_back() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.offers("app", 1);
    let mut gate = origin.start();
    in_force(&gate, 1).await;
    let (state, copied) = (gate.path().join("state"), node.file("copy"));
    copy(&state, &copied);
    origin.offers("other", 2);
    reload(&gate).await;
    node.starts(&gate, "other").await;
    for restored in [false, true] {
        gate.crash();
        if restored {
            fs::remove_dir_all(&state).unwrap();
            copy(&copied, &state);
        }
        // And the source plays along.
        origin.offers("app", 1);
        let before = gate.records("policy").len();
        gate.start_again();
        let older = "it has revision 1, which is older than revision 2 that this node had";
        told(&gate, before, older).await;
        match restored {
            false => node.starts(&gate, "other").await,
            true => assert_eq!(node.pull(&gate, "other").await.0, 2),
        }
        let (code, why) = node.pull(&gate, "app").await;
        assert_eq!(code, 2, "{why}");
    }
    let before = gate.records("policy").len();
    origin.offers("other", 2);
    comes_to(&gate, before, IN_FORCE).await;
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
}

/// Something that somebody does to the one file that is kept; the other is an older good one.
type Deed = fn(kept: &Path, older: &Path);

const DEEDS: [(&str, Deed, &str); 8] = [
    (
        "an older set in its place",
        |kept, older| assert!(fs::copy(older, kept).is_ok()),
        "they are not those that this node had last",
    ),
    (
        "another image let in",
        |kept, _| {
            let text = fs::read_to_string(kept).unwrap();
            let text = text.replace("/app", "/other");
            fs::write(kept, text.replace("\"payload\":\"", "\"payload\":\"AAAA")).unwrap();
        },
        "",
    ),
    (
        "cut short",
        |kept, _| File::options().write(true).open(kept).unwrap().set_len(100).unwrap(),
        "",
    ),
    (
        "a link to an older set",
        |kept, older| {
            fs::remove_file(kept).unwrap();
            symlink(older, kept).unwrap();
        },
        ".json cannot be read: Too many levels of symbolic links",
    ),
    (
        "a directory",
        |kept, _| {
            fs::remove_file(kept).unwrap();
            fs::create_dir(kept).unwrap();
        },
        ".json is no regular file",
    ),
    (
        "huge",
        |kept, _| File::options().write(true).open(kept).unwrap().set_len(1 << 40).unwrap(),
        ".json is larger than 67108864 bytes",
    ),
    (
        "a device",
        |kept, _| {
            fs::remove_file(kept).unwrap();
            nix::unistd::mkfifo(kept, nix::sys::stat::Mode::S_IRWXU).unwrap();
        },
        ".json is no regular file",
    ),
    ("gone", |kept, _| fs::remove_file(kept).unwrap(), ".json is not there"),
];

/// A good gate whose newest set lets in `app`, and one file of an older set that lets in `other`.
struct Good<'a> {
    node: &'a Node,
    gate: Gate,
    older: PathBuf,
    down: String,
}

impl Good<'_> {
    /// Puts things back as they were, does the deed and starts again, without the source.
    fn after(&mut self, deed: impl FnOnce(&Path, &Path)) -> usize {
        self.gate.crash();
        let (state, copied) = (self.gate.path().join("state"), self.node.file("state"));
        fs::remove_dir_all(&state).unwrap();
        copy(&copied, &state);
        fs::copy(self.node.file("mark"), mark(&self.gate)).unwrap();
        let kept = kept(&self.gate);
        assert_eq!(kept.len(), 1, "{kept:?}");
        deed(&kept[0], &self.older);
        let before = self.gate.records("policy").len();
        self.gate.start_again();
        before
    }

    /// Nothing is in force, for this reason, and the daemon is up.
    async fn refuses(&self, before: usize, what: &str, why: &str) {
        serves(&self.gate).await;
        let record = told(&self.gate, before, USELESS).await;
        let said = record["message"].as_str().unwrap();
        assert!(said.contains(why), "{what}: {said}");
        for name in ["app", "other"] {
            let (code, message) = self.node.pull(&self.gate, name).await;
            assert!(code == 2 && message.contains(NONE), "{what}: {message}");
            let record = self.gate.records("pull").pop().unwrap();
            assert_eq!(record["reason"], "policy_unavailable", "{what}");
        }
        told(&self.gate, before, &self.down).await;
    }

    /// Keeps a copy of what is good now, and of the set before.
    fn remember(&self) {
        copy(&self.gate.path().join("state"), &self.node.file("state"));
        fs::copy(mark(&self.gate), self.node.file("mark")).unwrap();
    }
}

/// Something that somebody does to the mark.
type Harm = fn(mark: &Path);

/// What is done to the mark, and what is said of it.
const MARKS: [(&str, Harm, &str); 4] = [
    ("edited", |mark| fs::write(mark, "{\"version\":1").unwrap(), "and cannot be read"),
    (
        "half",
        |mark| {
            let text = fs::read_to_string(mark).unwrap();
            fs::write(mark, &text[..text.len() / 2]).unwrap();
        },
        "cannot be read: ",
    ),
    (
        "a link",
        |mark| {
            let target = mark.with_file_name("elsewhere");
            fs::rename(mark, &target).unwrap();
            symlink(target, mark).unwrap();
        },
        "cannot be read: Too many levels of symbolic links",
    ),
    (
        "a directory",
        |mark| {
            fs::remove_file(mark).unwrap();
            fs::create_dir(mark).unwrap();
        },
        "is no regular file",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_a_kept_bundle_no_other_one_comes_into_force() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.offers("other", 1);
    let gate = origin.start();
    in_force(&gate, 1).await;
    let older = node.file("older.json");
    fs::copy(&kept(&gate)[0], &older).unwrap();
    origin.offers("app", 2);
    reload(&gate).await;
    node.starts(&gate, "app").await;
    origin.is_down();
    let mut good = Good { node, gate, older, down: origin.down() };
    good.remember();
    for (what, deed, why) in DEEDS {
        let before = good.after(deed);
        good.refuses(before, what, why).await;
    }
    // Whoever asks the source anew is given the newest set, and no older one.
    origin.offers("other", 1);
    let older = "it has revision 1, which is older than revision 2";
    comes_to(&good.gate, 0, older).await;
    let before = good.gate.records("policy").len();
    origin.offers("app", 2);
    comes_to(&good.gate, before, IN_FORCE).await;
    node.starts(&good.gate, "app").await;
    spoil_the_mark(&mut good, |name| origin.offers(name, if name == "app" { 2 } else { 1 })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_a_kept_set_of_the_api_server_no_other_one_comes_into_force() {
    let (node, server) = (Node::new(), ApiServer::start());
    let first = server.apply(&node.lets_in("other"));
    let gate = node.follows(&server, "").start();
    in_force(&gate, first).await;
    let older = node.file("older.json");
    fs::copy(&kept(&gate)[0], &older).unwrap();
    server.apply(&node.lets_in("app"));
    in_force(&gate, server.delete("ImagePolicy", "other")).await;
    node.starts(&gate, "app").await;
    take_down(&server);
    let mut good = Good { node: &node, gate, older, down: closed(&server) };
    good.remember();
    for (what, deed, why) in DEEDS {
        let before = good.after(deed);
        good.refuses(before, what, why).await;
    }
    let before = good.gate.records("policy").len();
    server.heal();
    comes_to(&good.gate, before, IN_FORCE).await;
    node.starts(&good.gate, "app").await;
    node.is_not_covered(&good.gate, "other").await;
}

/// A mark of no use: not even the source is believed, since it could be an older one.
async fn spoil_the_mark(good: &mut Good<'_>, offers: impl Fn(&str)) {
    let node = good.node;
    for (what, deed, why) in MARKS {
        good.gate.crash();
        let mark = mark(&good.gate);
        if mark.is_dir() {
            fs::remove_dir(&mark).unwrap()
        } else {
            fs::remove_file(&mark).unwrap()
        }
        fs::copy(node.file("mark"), &mark).unwrap();
        deed(&mark);
        offers("other");
        let before = good.gate.records("policy").len();
        good.gate.start_again();
        let record = told(&good.gate, before, "says which policies this node had last").await;
        assert!(record["message"].as_str().unwrap().contains(why), "{what}: {record}");
        for name in ["app", "other"] {
            offers(name);
            let said = reload(&good.gate).await;
            assert!(said.contains("Remove it if that is no danger"), "{what}: {said}");
            let (code, message) = node.pull(&good.gate, name).await;
            assert!(code == 2 && message.contains(NONE), "{what}: {message}");
        }
        assert_eq!(trouble(&good.gate).0, "NotKept", "{what}");
        serves(&good.gate).await;
    }
    // Without one nothing that was kept counts, and what the source holds does.
    good.gate.crash();
    fs::remove_dir(mark(&good.gate)).unwrap();
    offers("app");
    let before = good.gate.records("policy").len();
    good.gate.start_again();
    told(&good.gate, before, IN_FORCE).await;
    node.starts(&good.gate, "app").await;
}
