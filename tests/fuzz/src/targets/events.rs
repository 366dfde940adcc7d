//! The routing API's stream of events, however it is cut.
//!
//! Input: the first byte says how long the pieces are; the stream follows.

use route_sync::publish::tcp::events::Reader;

use super::Target;

pub(super) const TARGET: Target = Target {
    name: "events",
    words: &[
        "id: 0\n",
        "event: Upsert\n",
        "event: Delete\n",
        "event:",
        "data: ",
        "data:",
        "data\n",
        "retry: 1\n",
        ": x\n",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\r\r",
        "{\"port\":1024,\"backend_ip\":\"10.0.0.1\",\"backend_port\":1}",
        "\"backend_tls_port\":-1",
        "\"instance_id\":\"rs-1\"",
        "{",
        "}",
        "null",
    ],
    run,
};

fn run(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else {
        return;
    };
    let size = usize::from(*size).max(1);
    let whole = Reader::default().push(stream);
    let mut reader = Reader::default();
    let mut events = Vec::new();
    let mut cut = Ok(());
    for piece in stream.chunks(size) {
        match reader.push(piece) {
            Ok(more) => events.extend(more),
            Err(error) => {
                cut = Err(error);
                break;
            }
        }
    }
    assert_eq!(cut.map(|()| events), whole, "cut every {size} bytes");
}
