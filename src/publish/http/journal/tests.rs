use super::*;

fn keys(texts: &[(&str, &str)]) -> TlsKeys {
    let mut keys = TlsKeys::default();
    for (uri, addr) in texts {
        let uri = Arc::new(Uri::parse(uri).unwrap());
        keys.insert(&uri, addr.parse().unwrap());
    }
    keys
}

async fn written(journal: &mut Journal, clock: Clock) {
    let ended = tokio::time::timeout(Duration::from_mins(1), journal.written(clock)).await;
    ended.expect("the write must end");
}

fn text(folder: &Path) -> String {
    fs::read_to_string(folder.join(FILE_NAME)).unwrap()
}

#[tokio::test]
async fn what_one_process_wrote_the_next_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let all = keys(&[
        ("*.a.test/x", "10.0.0.1:30001"),
        ("b.test", "10.0.0.2:30002"),
        ("b.test", "[fd00::1]:30002"),
    ]);
    let mut journal = Journal::open(folder.path()).await;
    assert!(journal.take_left().is_empty());
    journal.grow(&all, clock.now());
    assert!(journal.recorded().is_empty(), "it is not written yet");
    written(&mut journal, clock).await;
    assert_eq!(*journal.recorded(), all);
    assert_eq!(
        text(folder.path()),
        concat!(
            r#"{"version":1,"tls":{"*.a.test/x":["10.0.0.1:30001"],"#,
            r#""b.test":["10.0.0.2:30002","[fd00::1]:30002"]}}"#,
            "\n"
        )
    );
    let mut next = Journal::open(folder.path()).await;
    assert_eq!(next.take_left(), all);
    assert!(next.take_left().is_empty(), "it is told once");
    assert_eq!(*next.recorded(), all);
}

#[tokio::test]
async fn nothing_is_written_while_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let mut journal = Journal::open(folder.path()).await;
    let none = TlsKeys::default();
    journal.grow(&none, clock.now());
    journal.shrink(&none, clock.now());
    journal.record(&none, clock).await;
    assert!(journal.writing.is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let one = keys(&[("a.test", "10.0.0.1:30001")]);
    journal.grow(&one, clock.now());
    written(&mut journal, clock).await;
    journal.grow(&one, clock.now());
    journal.shrink(&one, clock.now());
    assert!(journal.writing.is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_being_forgotten_may_not_be_announced_and_what_grows_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let one = keys(&[("a.test", "10.0.0.1:30001")]);
    let other = keys(&[("b.test", "10.0.0.1:30002")]);
    let mut both = one.clone();
    both.extend(&other);
    let mut journal = Journal::open(folder.path()).await;
    journal.grow(&one, clock.now());
    written(&mut journal, clock).await;
    journal.grow(&other, clock.now());
    written(&mut journal, clock).await;
    assert_eq!(*journal.recorded(), both);
    journal.shrink(&other, clock.now());
    assert_eq!(
        *journal.recorded(),
        other,
        "from the moment the write began"
    );
    written(&mut journal, clock).await;
    assert!(!text(folder.path()).contains("a.test"));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_counts_as_none_and_is_replaced_when_needed() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let path = folder.path().join(FILE_NAME);
    let cases = [
        (r#"{"version":1,"tls":{"a.te"#, "is no journal"),
        ("", "is no journal"),
        (r#"{"version":2,"more":{}}"#, "has version 2, not 1"),
        (
            r#"{"version":1,"tls":{"a test":["10.0.0.1:1"]}}"#,
            "names a uri that is none",
        ),
        (
            r#"{"version":1,"tls":{"a.test":["10.0.0.1"]}}"#,
            "is no journal",
        ),
    ];
    for (contents, expected) in cases {
        fs::write(&path, contents).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let mut journal = Journal::open(folder.path()).await;
        assert!(journal.take_left().is_empty() && journal.recorded().is_empty());
        assert_eq!(text(folder.path()), contents, "it stays as it is");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(read(&path), Err(JournalError::Unreadable(..))));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "half").unwrap();
    let mut journal = Journal::open(folder.path()).await;
    let one = keys(&[("a.test", "10.0.0.1:30001")]);
    journal.record(&one, clock).await;
    while journal.writing.is_some() {
        written(&mut journal, clock).await;
    }
    assert_eq!(read(&path).unwrap(), one);
}

#[tokio::test]
async fn a_write_that_fails_records_nothing_and_is_tried_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let clock = Clock::start();
    let one = keys(&[("a.test", "10.0.0.1:30001")]);
    let mut journal = Journal::open(&missing).await;
    journal.grow(&one, clock.now());
    written(&mut journal, clock).await;
    assert!(journal.recorded().is_empty());
    assert!(journal.error().unwrap().contains("cannot write"));
    let again = journal.deadline().unwrap();
    fs::create_dir(&missing).unwrap();
    journal.grow(&one, again.checked_sub(Duration::from_millis(1)).unwrap());
    assert!(journal.writing.is_none(), "too early");
    journal.grow(&one, again);
    written(&mut journal, clock).await;
    assert_eq!((journal.error(), journal.deadline()), (None, None));
    assert_eq!(*journal.recorded(), one);
}
