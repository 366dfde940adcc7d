//! What the demo says when the controller does not run. With one that does, it is shown where the real one is built.

use std::time::Duration;

use tokio::process::Command;

/// Generous: nothing is measured here.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn ends_with_an_error_when_the_controller_does() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--controller", "false", "--manifests"])
        .arg(folder.path())
        .output();
    let output = tokio::time::timeout(DEADLINE, output)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the controller ended by itself"), "{error}");
}
