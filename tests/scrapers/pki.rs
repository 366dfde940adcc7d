//! Certificates as BOSH makes them, RSA, by the `openssl` of the machine: `<name>.pem` and `<name>.key` in a folder.

use std::path::Path;
use std::process::{Command, Stdio};

/// One that signs others, with a key that `openssl req -newkey` makes.
pub(crate) fn authority(folder: &Path, name: &str, key: &str) {
    let request =
        format!("req -x509 -newkey {key} -nodes -days 2 -subj /CN={name} -keyout {name}.key");
    openssl(folder, &format!("{request} -out {name}.pem"));
}

/// One of an authority, for a usage such as `serverAuth` and under one name, which is no address.
pub(crate) fn certificate(folder: &Path, name: &str, authority: &str, usage: &str, host: &str) {
    let extensions = format!("extendedKeyUsage={usage}\nsubjectAltName=DNS:{host}\n");
    std::fs::write(folder.join("extensions"), extensions).unwrap();
    let request = format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key");
    openssl(folder, &format!("{request} -out {name}.csr"));
    let by = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial");
    openssl(
        folder,
        &format!("x509 -req -in {name}.csr {by} -days 2 -extfile extensions -out {name}.pem"),
    );
}

fn openssl(folder: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .current_dir(folder)
        .args(arguments.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("openssl must be there");
    assert!(status.success(), "openssl {arguments}");
}
