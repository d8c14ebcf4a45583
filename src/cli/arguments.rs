//! The command line; help, and later man pages and completions, are made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::policy::bundle::MAX_REVISION;

/// The daemon's configuration, where nothing else is said.
pub(super) const CONFIG: &str = "/etc/portcullis/config.toml";

/// Verifies container images on the node, between kubelet and containerd: judges what is pulled and
/// what starts, and relays every other call.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, arg_required_else_help = true, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 accepted, 1 refused, 2 could not judge, 64 usage, 78 configuration"
)]
pub(super) struct Arguments {
    /// How to print: for people, or as JSON for machines
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Human, value_name = "FORMAT")]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// `--output`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Output {
    Human,
    Json,
}

impl Output {
    pub(super) fn is_json(self) -> bool {
        matches!(self, Output::Json)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve CRI: judge what is pulled and what starts, relay every other call
    #[command(
        after_help = "Examples:\n  portcullis run\n  portcullis run --config /tmp/config.toml\n\n\
        PORTCULLIS_LOG sets what is logged: error, warn, info (the default), debug or trace, also per\n\
        module, as in info,portcullis::resolve=debug. SIGHUP reads the policies anew."
    )]
    Run {
        /// Configuration of the daemon
        #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
        config: PathBuf,
        /// An error here, so help does not offer it
        #[arg(short, long, hide = true, value_enum, default_value_t = Output::Human)]
        output: Output,
    },
    /// Read configuration and policies as the daemon does, and say what is wrong with them
    #[command(
        after_help = "Examples:\n  portcullis check /etc/portcullis/config.toml /etc/portcullis/policies\n  \
        portcullis check production.yaml -o json\n\nExit codes: 0 all is well, 78 something is wrong"
    )]
    Check {
        /// config.toml, policy files, or directories of policies
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Judge an image now, without a daemon
    #[command(after_help = "Examples:\n  portcullis verify registry.example.com/prod/app:v1\n  \
        portcullis verify --key cosign.pub registry.example.com/prod/app:v1\n  \
        portcullis verify --policy ./policies --namespace shop registry.example.com/prod/app:v1 -o json\n\n\
        Exit codes: 0 accepted, 1 refused, 2 could not judge")]
    Verify(Question),
    /// Show which policies match an image and what each authority found
    #[command(after_help = "Examples:\n  portcullis explain registry.example.com/prod/app:v1\n  \
        portcullis explain --policy ./policies --namespace shop registry.example.com/prod/app:v1 -o json\n\n\
        Exit codes: 0 accepted, 1 refused, 2 could not judge")]
    Explain(Question),
    /// Show how the daemon on this node stands, and whether kubelet talks to it
    #[command(after_help = "Examples:\n  portcullis status\n  portcullis status -o json\n\n\
        Exit codes: 0 enforcing, 1 no policy is in force, the audit log takes nothing or no pod can start,\n\
        2 the daemon does not answer, or not to you")]
    Status {
        /// Configuration of the daemon
        #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show what policies would refuse of the images and running containers of this node
    ///
    /// Asks the container runtime what it has, and registries for signatures that are not known on
    /// this node; with or without a daemon beside it. Changes nothing. Containers are judged as if
    /// they were created now, except that annotations which break a policy's glass are not seen.
    ///
    /// Images are judged for pods of any namespace: "accepted for some pods" means that the policies
    /// of one namespace accept the image and those of another refuse it. That alone is no refusal;
    /// running containers are judged for their own pods. The digests, as they are shown, may stand in
    /// an authority's `digests`.
    #[command(after_help = "Examples:\n  portcullis preflight --policy ./policies\n  \
        portcullis preflight --policy ./policies --auth-file pull-secret.json -o json\n  \
        portcullis preflight --policy kubernetes:\n  \
        portcullis preflight --offline   (the policies of the configuration, as if no registry answered)\n\n\
        Exit codes: 0 nothing would be refused, 1 something would be,\n\
        2 could not judge everything, and nothing else would be refused, 78 configuration or policy")]
    Preflight(Candidate),
    /// Verify or follow the audit log
    #[command(
        subcommand,
        after_help = "Examples:\n  portcullis audit tail -f\n  \
            portcullis audit verify --state /var/lib/portcullis /var/log/portcullis/audit.jsonl"
    )]
    Audit(AuditCommand),
    /// Bring evidence from node to node, for nodes that reach no registry
    #[command(
        subcommand,
        after_help = "Examples:\n  portcullis evidence export registry.example.com/prod/app:v1 > app.pack\n  \
            portcullis evidence import app.pack"
    )]
    Evidence(EvidenceCommand),
    /// Make, sign and show bundles of policies, which nodes fetch from a server or a registry
    #[command(
        subcommand,
        after_help = "Examples:\n  portcullis policy bundle ./policies --revision 7 -o prod.payload\n  \
            portcullis policy sign prod.payload --key bundle.key -o prod.bundle\n  \
            portcullis policy show prod.bundle --key bundle.pub"
    )]
    Policy(PolicyCommand),
}

/// What `verify` and `explain` ask.
#[derive(Args, Debug)]
pub(super) struct Question {
    /// The image, as a pod would name it
    pub(super) image: String,
    /// Directory or file of policies, or a source as in policy.source [default: what that is]
    #[arg(long, value_name = "PATH|SOURCE", conflicts_with = "key")]
    pub(super) policy: Option<String>,
    /// Judge by this public key alone (PEM), in place of policies
    #[arg(long, value_name = "PEM")]
    pub(super) key: Option<PathBuf>,
    /// Judge as for a pod of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Configuration of the daemon, for its policy source and registry_config
    #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Directories with hosts.toml files, colon-separated [default: registry_config of the configuration]
    #[arg(long, value_name = "DIRS")]
    pub(super) registry_config: Option<String>,
    /// Credentials in the form of Docker's config.json [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json, if there]
    #[arg(long, value_name = "FILE")]
    pub(super) auth_file: Option<PathBuf>,
}

/// What `preflight` asks.
#[derive(Args, Debug)]
pub(super) struct Candidate {
    /// Directory or file of policies, or a source as in policy.source [default: what that is]
    #[arg(long, value_name = "PATH|SOURCE")]
    pub(super) policy: Option<String>,
    /// Ask no registry: judge by the evidence on this node alone
    #[arg(long)]
    pub(super) offline: bool,
    /// Configuration of the daemon, for its runtime, policy source and floor, registry_config and state directory
    #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Credentials in the form of Docker's config.json [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json, if there]
    #[arg(long, value_name = "FILE", conflicts_with = "offline")]
    pub(super) auth_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Check that no line was changed, dropped or reordered, and that the end is there
    #[command(
        after_help = "Examples:\n  portcullis audit verify /var/log/portcullis/audit.jsonl\n  \
        portcullis audit verify audit.jsonl.2 audit.jsonl.1 audit.jsonl   (rotated files, oldest first)\n  \
        portcullis audit verify --state /var/lib/portcullis /var/log/portcullis/audit.jsonl\n\n\
        Exit codes: 0 whole, 1 broken, 2 cannot be read"
    )]
    Verify {
        /// Log files, oldest first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The daemon's state directory, which knows where the log must end
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Print the last records
    #[command(after_help = "Examples:\n  portcullis audit tail\n  portcullis audit tail -f -n 50")]
    Tail {
        /// The log file [default: that of the configuration]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Configuration of the daemon
        #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
        config: PathBuf,
        /// How many records
        #[arg(short = 'n', long, default_value_t = 10, value_name = "N")]
        lines: usize,
        /// Go on printing as records come, across rotation
        #[arg(short, long)]
        follow: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum EvidenceCommand {
    /// Write what is known of images to standard output, as a pack: manifests and signatures
    #[command(after_help = "Examples:\n  portcullis evidence export --all > node.pack\n  \
        portcullis evidence export registry.example.com/prod/app:v1 > app.pack\n  \
        portcullis evidence export --from registry registry.example.com/prod/app:v1 > app.pack\n\n\
        What this node knows is taken first. Otherwise the registry of the image is asked, on any\n\
        machine, and of an image for several platforms that for this machine's goes into the pack.\n\
        Each image is told on standard error, with its digest and number of signatures.\n\n\
        Exit codes: 0 all have signatures, 1 an image has none or is not known, 2 could not be asked")]
    Export(Export),
    /// Keep the evidence of a pack on this node, beside a daemon that may be running
    #[command(after_help = "Examples:\n  portcullis evidence import app.pack\n  \
        ssh node1 portcullis evidence export --all | portcullis evidence import -\n\n\
        A pack is not trusted: what it says counts where a policy's key has signed it. Nothing of a\n\
        pack is kept if any line of it is wrong. What the runtime does not have 7 days later is\n\
        forgotten again.\n\n\
        Exit codes: 0 all is kept, 2 could not be kept, 78 the pack or the configuration is wrong")]
    Import(Import),
}

/// What `evidence export` asks.
#[derive(Args, Debug)]
pub(super) struct Export {
    /// Images by name, digest or ID
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub(super) images: Vec<String>,
    /// Every image that this node knows
    #[arg(long, conflicts_with_all = ["images", "from"])]
    pub(super) all: bool,
    /// Look nowhere else [default: the store, then the registry]
    #[arg(long, value_enum, value_name = "PLACE")]
    pub(super) from: Option<Place>,
    #[command(flatten)]
    pub(super) at: StateOf,
    /// Directories with hosts.toml files, colon-separated [default: registry_config of the configuration]
    #[arg(long, value_name = "DIRS")]
    pub(super) registry_config: Option<String>,
    /// Credentials in the form of Docker's config.json [default: $DOCKER_CONFIG/config.json or ~/.docker/config.json, if there]
    #[arg(long, value_name = "FILE")]
    pub(super) auth_file: Option<PathBuf>,
}

/// What `evidence import` asks.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// The pack; - for standard input
    #[arg(value_name = "PACK")]
    pub(super) pack: PathBuf,
    #[command(flatten)]
    pub(super) at: StateOf,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Write a directory of policies as the payload of a bundle, to be signed
    #[command(after_help = "Examples:\n  \
        portcullis policy bundle ./policies --revision 7 -o prod.payload\n  \
        portcullis policy bundle ./policies --revision 8 --expires-in 30d -o prod.payload\n\n\
        The directory is read as the daemon reads it, with the keys that its policies name; what does\n\
        not load is not written. The same directory, revision and expiry make the same bytes.\n\n\
        Exit codes: 0 written, 2 could not be written, 78 the policies are wrong")]
    Bundle(Bundle),
    /// Sign the payload of a bundle, or add a signature to a bundle
    #[command(after_help = "Examples:\n  \
        openssl genpkey -algorithm ed25519 -out bundle.key; openssl pkey -in bundle.key -pubout -out bundle.pub\n  \
        portcullis policy sign prod.payload --key bundle.key -o prod.bundle\n  \
        portcullis policy sign prod.bundle --key next.key -o prod.bundle   (while a key is rotated)\n\n\
        The key is ECDSA (P-256, P-384, P-521), RSA or Ed25519, in PKCS#8 and not encrypted. For keys\n\
        that never leave a KMS or cosign, push the payload to a registry and let cosign sign it there.\n\n\
        Exit codes: 0 signed, 2 could not be written, 78 the key, the payload or its policies are wrong")]
    Sign(Sign),
    /// Show what is in a bundle, and whether a key signed it
    #[command(after_help = "Examples:\n  portcullis policy show prod.bundle --key bundle.pub\n  \
        portcullis policy show prod.payload -o json\n\n\
        Exit codes: 0 shown, and signed where --key asks, 1 not signed by any --key, 78 no bundle")]
    Show(Show),
}

/// What `policy bundle` asks.
#[derive(Args, Debug)]
pub(super) struct Bundle {
    /// Directory of policies
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// Counts the changes of the policies, from 1 on: nodes never go back to a lower one
    #[arg(long, value_name = "N", value_parser = revision)]
    pub(super) revision: u64,
    /// Nodes refuse everything from this moment on, unless they have fetched another bundle
    #[arg(long, value_name = "TIME", conflicts_with = "expires_in")]
    pub(super) expires_at: Option<String>,
    /// The same, from now on: 30d, 12h (s, m, h, d, w)
    #[arg(long, value_name = "DURATION")]
    pub(super) expires_in: Option<String>,
    #[command(flatten)]
    pub(super) to: To,
}

/// What `policy sign` asks.
#[derive(Args, Debug)]
pub(super) struct Sign {
    /// The payload or the bundle; - for standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The private key (PEM)
    #[arg(long, value_name = "PEM")]
    pub(super) key: PathBuf,
    #[command(flatten)]
    pub(super) to: To,
}

/// Where to write a file; `-o` is the file here, and the form of what is said has another name.
#[derive(Args, Debug)]
pub(super) struct To {
    /// The file to write, as a whole or not at all; - for standard output
    #[arg(short, long, id = "to", value_name = "FILE")]
    pub(super) output: PathBuf,
    /// How to print what was written: for people, or as JSON for machines
    #[arg(long, id = "output", value_enum, default_value_t = Output::Human, value_name = "FORMAT")]
    pub(super) format: Output,
}

/// What `policy show` asks.
#[derive(Args, Debug)]
pub(super) struct Show {
    /// The bundle or the payload; - for standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Public key that must have signed it (PEM); of several, any
    #[arg(long, value_name = "PEM")]
    pub(super) key: Vec<PathBuf>,
}

/// `--revision`.
fn revision(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_REVISION).contains(number));
    number.ok_or_else(|| format!("a whole number from 1 to {MAX_REVISION} is expected"))
}

/// Where a node keeps its evidence.
#[derive(Args, Debug)]
pub(super) struct StateOf {
    /// The daemon's state directory [default: that of the configuration]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Configuration of the daemon
    #[arg(short, long, default_value = CONFIG, value_name = "FILE")]
    pub(super) config: PathBuf,
}

/// `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Place {
    /// The store of this node
    Store,
    /// The registry of the image
    Registry,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_revision_is_one_that_json_can_carry() {
        assert_eq!((revision("1"), revision("9007199254740991")), (Ok(1), Ok(MAX_REVISION)));
        let why = "a whole number from 1 to 9007199254740991 is expected";
        for text in ["0", "9007199254740992", "-1", "v1", ""] {
            assert_eq!(revision(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
