//! Certificates that are replaced on disk while a connection stands: a new connection takes them up, once they can
//! be used, and at a moment of its own, so that not every client of a server comes back at once.

use std::time::Duration;

use tracing::{info, warn};

use super::{HttpLane, LAME_DUCK_SPREAD};
use crate::Uptime;
use crate::causes::chain;
use crate::config::NatsConfig;
use crate::publish::tls::{self, Stamp};

/// How often the files are looked at: certificates are replaced long before they expire.
pub(super) const LOOK: Duration = Duration::from_secs(30);

/// The files of the connection that stands; none without TLS.
#[derive(Debug, Default)]
pub(super) struct Files {
    used: Option<Stamp>,
    /// Those that could not be used last, so that this is said once.
    refused: Option<Stamp>,
    look_at: Uptime,
}

// === impl Files ===

impl Files {
    pub(super) fn of(config: &NatsConfig, now: Uptime) -> Self {
        Self {
            used: config.tls.as_ref().map(|tls| tls::stamp(&tls.files())),
            refused: None,
            look_at: now + LOOK,
        }
    }

    pub(super) fn deadline(&self) -> Option<Uptime> {
        self.used.as_ref().map(|_| self.look_at)
    }
}

// === impl HttpLane ===

impl HttpLane {
    pub(super) fn leave_for_new_files(&mut self, now: Uptime) {
        let Some(config) = self
            .config
            .tls
            .as_ref()
            .filter(|_| now >= self.files.look_at)
        else {
            return;
        };
        self.files.look_at = now + LOOK;
        let stamp = Some(tls::stamp(&config.files()));
        if stamp == self.files.used || stamp == self.files.refused {
            return;
        }
        match tls::usable(config) {
            Ok(()) => {
                info!("nats certificates changed, reconnecting");
                let spread = LAME_DUCK_SPREAD.mul_f64(fastrand::f64());
                self.leave_at.get_or_insert(now + spread);
                (self.files.used, self.files.refused) = (stamp, None);
            }
            // Whoever replaces them may be half way, and the connection that stands does not need them.
            Err(error) => {
                let error = chain(&error);
                warn!(
                    error,
                    "new nats certificates cannot be used, the connection stays"
                );
                self.files.refused = stamp;
            }
        }
    }
}
