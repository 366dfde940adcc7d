//! The disk under the state file.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use route_sync::state::{self, Contents, Decode, Encode, StateError};

use super::Line;
use crate::Moment;

/// When the world begins, since 1970.
pub const BEGINNING: Duration = Duration::from_secs(1_767_225_600);

#[derive(Default)]
pub struct Disk {
    pub contents: Option<Vec<u8>>,
    /// Until when nothing can be written.
    pub full: Moment,
    /// Until when a write takes seconds.
    pub slow: Moment,
}

/// One process's way to the disk.
pub struct Mounted(pub Line);

// === impl Mounted ===

impl state::Disk for Mounted {
    fn read(&self, decode: Decode) -> BoxFuture<'static, Result<Option<Contents>, StateError>> {
        let line = self.0.clone();
        let read = async move {
            line.pause(Duration::from_millis(2)).await;
            let world = line.world();
            let contents = world.disks[line.instance]
                .contents
                .as_ref()
                .map(|bytes| decode(bytes));
            contents
                .transpose()
                .map_err(|error| StateError::Format(path(), error))
        };
        read.boxed()
    }

    fn write(&self, encode: Encode) -> BoxFuture<'static, Result<(), StateError>> {
        let line = self.0.clone();
        let bytes = encode(state::Disk::unix_seconds(self));
        let write = async move {
            let slow = line.world().disks[line.instance].slow;
            let now = line.world().now();
            let takes = if now < slow { 3000 } else { 8 };
            line.pause(Duration::from_millis(takes)).await;
            let mut world = line.world();
            let now = world.now();
            let disk = &mut world.disks[line.instance];
            if now < disk.full {
                let full = io::Error::from(io::ErrorKind::StorageFull);
                return Err(StateError::Unwritable(path(), full));
            }
            disk.contents = Some(bytes);
            Ok(())
        };
        write.boxed()
    }

    fn unix_seconds(&self) -> u64 {
        BEGINNING.as_secs() + self.0.own_time().as_secs()
    }
}

fn path() -> PathBuf {
    PathBuf::from("routes.jsonl")
}
