use super::*;

#[track_caller]
fn refuses(text: &str, message: &str) {
    assert_eq!(Config::parse("c.toml", text).unwrap_err().to_string(), message);
}

#[test]
fn every_key_has_its_default() {
    assert_eq!(Config::parse("c.toml", ""), Ok(Config::default()));
    assert_eq!(
        Config::parse("c.toml", "[listen]\n[runtime]\n[policy]\n[state]\n[audit]\n[metrics]\n"),
        Ok(Config::default())
    );
}

#[test]
fn the_packaged_file_documents_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/config.toml");
    assert_eq!(Config::load(&path).unwrap(), Config::default());
    // A key that is only commented out would pass above.
    let text = std::fs::read_to_string(path).unwrap();
    for key in [
        "[listen]",
        "socket = ",
        "[runtime]",
        "endpoint = ",
        "registry_config = ",
        "forward_methods = ",
        "[policy]",
        "source = ",
        "[state]",
        "directory = ",
        "[audit]",
        "file = ",
        "[metrics]",
        "# listen = ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(key)), "{key} must be documented");
    }
}

#[test]
fn every_key_can_be_set() {
    let config = Config::parse(
        "c.toml",
        "listen.socket = '/a.sock'\n[runtime]\nendpoint = '/b.sock'\n\
         registry_config = '/c:/d'\nforward_methods = ['/runtime.v1.ImageService/New']\n\
         [policy]\nsource = 'file:///e'\nfloor = '/h'\n[kubernetes]\n\
         kubeconfig = '/i'\nnode = 'n1'\n[state]\ndirectory = '/f'\n[audit]\nfile = '/g'\n\
         [metrics]\nlisten = '127.0.0.1:9464'\n",
    );
    let expected = Config {
        listen: Listen { socket: "/a.sock".into() },
        runtime: Runtime {
            endpoint: "/b.sock".into(),
            registry_config: vec!["/c".into(), "/d".into()],
            sandbox_image: None,
            forward_methods: vec!["/runtime.v1.ImageService/New".into()],
        },
        policy: Policy {
            source: PolicySource::Directory("/e".into()),
            floor: Some("/h".into()),
            ..Policy::default()
        },
        kubernetes: Kubernetes { kubeconfig: Some("/i".into()), node: Some("n1".into()) },
        state: State { directory: "/f".into() },
        audit: Audit { file: "/g".into() },
        metrics: Metrics { listen: Some(MetricsAddress::Tcp(([127, 0, 0, 1], 9464).into())) },
    };
    assert_eq!(config, Ok(expected));
    let config = Config::parse("c.toml", "[runtime]\nregistry_config = ''").unwrap();
    assert!(config.runtime.registry_config.is_empty());
}

#[test]
fn what_is_unknown_or_of_another_type_is_refused() {
    refuses(
        "# é\n[listen]\nsockets = '/a'\n",
        "c.toml:3:1: unknown field `sockets`, expected `socket`",
    );
    refuses(
        "[metric]\nlisten = ''\n",
        "c.toml:1:2: unknown field `metric`, expected one of `listen`, `runtime`, `policy`, \
         `kubernetes`, `state`, `audit`, `metrics`",
    );
    refuses(
        "[runtime]\npause_image = 'x'\n",
        "c.toml:2:1: unknown field `pause_image`, expected one of `endpoint`, \
         `registry_config`, `sandbox_image`, `forward_methods`",
    );
    refuses(
        "policy.roof = 'x'\n",
        "c.toml:1:8: unknown field `roof`, expected one of `source`, `floor`, `max_age`, `keys`, \
         `poll`, `certificate_authority`, `auth_file`",
    );
    for (text, problem) in [
        ("listen = 1\n", "1:10: invalid type: integer `1`, expected a table"),
        ("listen = ['/a']\n", "1:10: invalid type: sequence, expected a table"),
        ("[[listen]]\nsocket = '/a'\n", "1:1: invalid type: sequence, expected a table"),
        ("state.directory = 1\n", "1:19: invalid type: integer `1`, expected a string"),
        ("state.directory = '/a'\nstate.directory = '/b'\n", "2:7: duplicate key"),
        ("[state]\n[state]\n", "2:2: duplicate key"),
        ("[state\n", "1:7: unclosed table, expected `]`"),
        ("runtime.forward_methods = [1]\n", "1:28: invalid type: integer `1`, expected a string"),
    ] {
        refuses(text, &format!("c.toml:{problem}"));
    }
}

#[test]
fn the_sandbox_image_is_a_reference() {
    let config = Config::parse("c.toml", "runtime.sandbox_image = 'registry.k8s.io/pause:3.10'");
    let image = config.unwrap().runtime.sandbox_image.unwrap();
    assert_eq!(image.to_string(), "registry.k8s.io/pause:3.10");
    refuses(
        "[runtime]\nsandbox_image = ''\n",
        "c.toml:2:17: runtime.sandbox_image: the image reference is empty",
    );
}

#[test]
fn paths_are_absolute_and_fit() {
    let long = format!("/{}", "a".repeat(107));
    for (value, why) in [
        ("run/a", "\"run/a\" must be an absolute path"),
        ("", "\"\" must be an absolute path"),
        ("unix:///run/a", "\"unix:///run/a\" must be a plain path; write what follows the \"://\""),
        (&long, "has 108 bytes, and the path of a socket can have 107"),
    ] {
        for (section, key) in [("listen", "socket"), ("runtime", "endpoint")] {
            let text = format!("[{section}]\n{key} = '{value}'\n");
            let column = key.len() + 4;
            refuses(&text, &format!("c.toml:2:{column}: {section}.{key}: {why}"));
        }
    }
    refuses(
        "state.directory = \"/a\\u0000\"",
        "c.toml:1:19: state.directory: \"/a\\\\u{0}\" must be a path of at most 4095 bytes \
         without control characters",
    );
    refuses(
        "runtime.registry_config = '/a::/b'",
        "c.toml:1:27: runtime.registry_config: \"\" must be an absolute path",
    );
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    refuses(
        "state.directory = 'a'\naudit.file = 'b'\n",
        "c.toml:1:19: state.directory: \"a\" must be an absolute path\n\
         c.toml:2:14: audit.file: \"b\" must be an absolute path",
    );
}

#[test]
fn portcullis_does_not_stand_before_itself() {
    let why = "listen.socket and runtime.endpoint are the same; Portcullis stands between the \
               two";
    refuses(
        "listen.socket = '/run/containerd/containerd.sock'",
        &format!("c.toml:1:17: listen.socket: {why}"),
    );
    refuses(
        "runtime.endpoint = '/run/portcullis/portcullis.sock'",
        &format!("c.toml:1:20: listen.socket: {why}"),
    );
}

#[test]
fn other_sources_of_policies_are_refused_by_name() {
    for (source, why) in [
        (
            "/etc/policies",
            "\"/etc/policies\" is no source of policies; write it as in \
             file:///etc/portcullis/policies, kubernetes:, \
             https://policies.example.com/production.json or \
             oci://registry.example.com/policies:production",
        ),
        (
            "file://etc/policies",
            "\"file://etc/policies\" must name an absolute directory, as in \
             file:///etc/portcullis/policies",
        ),
    ] {
        refuses(
            &format!("policy.source = '{source}'"),
            &format!("c.toml:1:17: policy.source: {why}"),
        );
    }
}

#[test]
fn judged_and_foreign_methods_cannot_be_forwarded() {
    let refuses_method = |method: &str, why: &str| {
        refuses(
            &format!("runtime.forward_methods = ['{method}']"),
            &format!("c.toml:1:28: runtime.forward_methods[0]: {method:?} {why}"),
        );
    };
    for method in values::JUDGED {
        refuses_method(method, "is judged or refused, and never forwarded as it is");
    }
    for method in [
        "",
        "NewMethod",
        "/runtime.v1.RuntimeService/",
        "/runtime.v1.RuntimeService/a",
        "/runtime.v1.RuntimeService/A/B",
        "/runtime.v1.RuntimeService/*",
        "runtime.v1.RuntimeService/A",
        "/runtime.v1alpha2.RuntimeService/PullImage",
        "/containerd.services.images.v1.Images/Create",
    ] {
        refuses_method(
            method,
            "is no method that can be forwarded; write it as in \
             /runtime.v1.RuntimeService/Name or /runtime.v1.ImageService/Name",
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("c.toml");
    let wrong = || {
        let problems = Config::load(&path).unwrap_err().to_string();
        problems.replace(path.to_str().unwrap(), "F")
    };
    assert_eq!(wrong(), "F: cannot be read: No such file or directory (os error 2)");
    std::fs::write(&path, vec![b'#'; MAX_CONFIG + 1]).unwrap();
    assert_eq!(wrong(), "F: is larger than 65536 bytes");
}

#[test]
fn metrics_are_served_at_an_address_or_a_socket() {
    let listen = |text: &str| {
        let text = format!("metrics.listen = '{text}'");
        let address = Config::parse("c.toml", &text).unwrap().metrics.listen.unwrap();
        address.to_string()
    };
    for good in ["127.0.0.1:9464", "[::1]:0", "unix:/run/m.sock"] {
        assert_eq!(listen(good), good);
    }
    for wrong in ["", "localhost:9464", ":9464", "127.0.0.1", "http://127.0.0.1:9464", "/run/m"] {
        refuses(
            &format!("metrics.listen = '{wrong}'"),
            &format!(
                "c.toml:1:18: metrics.listen: {wrong:?} must be an IP address with a port, as in \
                 127.0.0.1:9464, or the path of a socket, as in unix:/run/portcullis/metrics.sock"
            ),
        );
    }
    refuses(
        "metrics.listen = 'unix:m.sock'",
        "c.toml:1:18: metrics.listen: \"m.sock\" must be an absolute path",
    );
}

#[test]
fn bundles_are_believed_by_their_keys() {
    let config = Config::parse(
        "c.toml",
        "[policy]\nsource = 'https://policies.example.com/a.json'\nkeys = ['/a.pub', '/b.pub']\n\
         poll = '30s'\nmax_age = '72h'\ncertificate_authority = '/ca.pem'\n",
    );
    let policy = config.unwrap().policy;
    assert_eq!(policy.source.to_string(), "https://policies.example.com/a.json");
    assert_eq!(policy.max_age, Some(jiff::SignedDuration::from_hours(72)));
    let bundle = Bundle {
        keys: vec!["/a.pub".into(), "/b.pub".into()],
        poll: jiff::SignedDuration::from_secs(30),
        certificate_authority: Some("/ca.pem".into()),
        auth_file: None,
    };
    assert_eq!(policy.bundle, bundle);
    let oci = "policy.source = 'oci://r.example.com/p:v1'\npolicy.keys = ['/a.pub']\n\
               policy.auth_file = '/auth.json'\n";
    let policy = Config::parse("c.toml", oci).unwrap().policy;
    assert_eq!(policy.source.to_string(), "oci://r.example.com/p:v1");
    refuses(
        "[policy]\nsource = 'oci://r.example.com/p:v1'\n",
        "c.toml:2:10: policy.source: is a signed bundle, and policy.keys names no public key that \
         must have signed it, as in keys = [\"/etc/portcullis/policy.pub\"]",
    );
}

#[test]
fn what_suits_a_source_that_cannot_be_read_is_not_known() {
    let text = "[policy]\nsource = 'ftp://a.example/b'\nkeys = ['/a']\npoll = '1m'\n";
    let error = Config::parse("c.toml", text).unwrap_err();
    assert_eq!(error.list().len(), 1, "{error}");
}

#[test]
fn what_has_no_meaning_for_the_source_is_refused() {
    for (source, key, problem) in [
        (
            "file:///e",
            "keys = ['/a']",
            "9: policy.keys: has a meaning for https:// and oci:// only, and the source is /e",
        ),
        (
            "kubernetes:",
            "poll = '1m'",
            "8: policy.poll: has a meaning for https:// and oci:// only, and the source is kubernetes:",
        ),
        (
            "kubernetes:",
            "certificate_authority = '/a'",
            "25: policy.certificate_authority: has a meaning for https:// only, and the source is kubernetes:",
        ),
        (
            "kubernetes:",
            "auth_file = '/a'",
            "13: policy.auth_file: has a meaning for oci:// only, and the source is kubernetes:",
        ),
        (
            "file:///e",
            "max_age = '1h'",
            "11: policy.max_age: has a meaning for kubernetes:, https:// and oci:// only, and the source is /e",
        ),
        (
            "file:///e",
            "floor = '/e'",
            "9: policy.floor: is the source itself; the floor is what holds without the source",
        ),
        ("kubernetes:", "max_age = '5m'", "11: policy.max_age: must be at least 10m"),
        (
            "kubernetes:",
            "max_age = 'soon'",
            "11: policy.max_age: \"soon\" is no duration; write it as in 30s, 10m or 72h",
        ),
        ("kubernetes:", "max_age = '-1h'", "11: policy.max_age: must be at least 10m"),
        ("kubernetes:", "floor = 'e'", "9: policy.floor: \"e\" must be an absolute path"),
    ] {
        let text = format!("[policy]\nsource = '{source}'\n{key}\n");
        refuses(&text, &format!("c.toml:3:{problem}"));
    }
    for (source, problem) in [
        ("https://", "\"https://\" is no address; "),
        ("https://u:p@a/b", "an address must not have credentials in it; "),
        ("http://a/b", "\"http://a/b\" would be asked in plain HTTP"),
        ("oci://", "the image reference is empty"),
    ] {
        let text = format!("[policy]\nsource = '{source}'\nkeys = ['/a']\n");
        let told = Config::parse("c.toml", &text).unwrap_err().to_string();
        assert!(told.starts_with(&format!("c.toml:2:10: policy.source: {problem}")), "{told}");
    }
    refuses(
        "[kubernetes]\nnode = 'A'\n",
        "c.toml:2:8: kubernetes.node: \"A\" is no name of a Node",
    );
}
