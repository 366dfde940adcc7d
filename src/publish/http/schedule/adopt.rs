//! TLS keys from one life of the process to the next: what this one must leave on record, and what the last
//! one left.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{MessageKey, Schedule};
use crate::Uptime;
use crate::publish::http::tls_keys::TlsKeys;
use crate::route::Uri;

// === impl Schedule ===

impl Schedule {
    /// The TLS keys that are announced, are about to be, or are being withdrawn.
    #[must_use]
    pub fn tls_keys(&self) -> TlsKeys {
        let mut keys = TlsKeys::default();
        for (key, message) in self.messages.iter().filter(|(_, message)| message.tls) {
            for uri in &message.uris {
                keys.insert(uri, key.addr);
            }
        }
        for (uri, addr) in self.withdrawals.tls_keys() {
            keys.insert(uri, addr);
        }
        keys
    }

    /// Counts up whenever [`Self::tls_keys`] may have changed.
    #[must_use]
    pub fn tls_revision(&self) -> u64 {
        self.tls_revision
    }

    /// Withdraws, as any TLS key, those that an earlier process left and that the table does not want. To be
    /// called once the first table is applied. Returns the keys that are withdrawn.
    pub fn adopt(&mut self, left: &TlsKeys, now: Uptime) -> TlsKeys {
        let mut adopted = TlsKeys::default();
        for (uri, addr) in left.iter() {
            if !self.is_announced(uri, addr) && !self.withdrawals.holds(uri, addr) {
                self.withdrawals.add(uri, addr, true, now);
                adopted.insert(uri, addr);
            }
        }
        self.tls_revision += 1;
        if self.connected {
            self.enqueue_withdrawals();
        }
        adopted
    }

    fn is_announced(&self, uri: &Arc<Uri>, addr: SocketAddr) -> bool {
        let all = MessageKey { addr, part: 0 }..=MessageKey {
            addr,
            part: u16::MAX,
        };
        self.messages
            .range(all)
            .any(|(_, message)| message.uris.contains(uri))
    }
}
