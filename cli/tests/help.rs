//! Every command explains itself, with an example.

mod support;

use support::Sandbox;

/// The names of the commands below `path`, as its help lists them.
fn subcommands(sandbox: &Sandbox, path: &[String]) -> Vec<String> {
    let help = sandbox.run(&[path, &["--help".to_owned()]].concat());
    help.assert_done();
    let lines = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1);
    lines
        .take_while(|line| !line.is_empty())
        // A description that goes on in the next line is indented further.
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_has_an_example() {
    let sandbox = Sandbox::new();
    let mut open = vec![Vec::new()];
    let mut seen = Vec::new();
    while let Some(path) = open.pop() {
        for name in subcommands(&sandbox, &path) {
            open.push([path.as_slice(), &[name]].concat());
        }
        for flag in ["-h", "--help"] {
            let help = sandbox.run(&[path.as_slice(), &[flag.to_owned()]].concat());
            help.assert_done();
            let last_word = path.last().map_or("minivmm", String::as_str);
            let example = help.stdout.split("EXAMPLES:").nth(1).unwrap_or_default();
            assert!(
                example.contains(last_word),
                "{path:?} {flag}: {}",
                help.stdout
            );
        }
        seen.push(path.join(" "));
    }
    for command in [
        "run",
        "restore",
        "template create",
        "exec",
        "guest build",
        "ps",
    ] {
        assert!(
            seen.iter().any(|path| path == command),
            "{command} is not among {seen:?}"
        );
    }
}

#[test]
fn completions_and_manual_pages_name_the_commands() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.run(&["completions", shell]);
        script.assert_done();
        assert!(script.stdout.contains("restore"), "{shell}");
    }
    let page = sandbox.run(&["man"]);
    page.assert_done();
    assert!(page.stdout.contains("minivmm"));
    sandbox.run(&["man", "--output", "pages"]).assert_done();
    assert!(
        sandbox
            .root()
            .join("pages/minivmm-template-create.1")
            .is_file()
    );
}

#[test]
fn a_closed_standard_output_is_no_error() {
    let sandbox = Sandbox::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sandbox
        .command(&["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}
