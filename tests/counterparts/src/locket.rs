//! locket: the lock that a routing API must hold before it serves.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde_json::json;

use crate::mariadb::MariaDb;
use crate::pki::Pki;
use crate::process::{self, Process, Program, has_process};
use crate::run::{self, RunFolder};
use crate::{port, programs};

/// The database it expects to exist.
pub const DATABASE: &str = "locket";

pub struct Locket {
    process: Process,
    address: SocketAddr,
}

// === impl Locket ===

impl Locket {
    pub async fn start(run: &RunFolder, pki: &Pki, database: &MariaDb) -> Result<Self> {
        let folder = run.folder("locket")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let config = json!({
            "listen_address": address.to_string(),
            "database_driver": "mysql",
            "database_connection_string":
                format!("root:@tcp({})/{DATABASE}?parseTime=true", database.address()),
            "ca_file": pki.ca_file(),
            "cert_file": pki.server_cert_file(),
            "key_file": pki.server_key_file(),
            "report_interval": "1m",
            "log_level": "info",
            // Since 1.7 it exits without these, although nothing needs to listen there.
            "loggregator": {
                "loggregator_use_v2_api": true,
                "loggregator_api_port": port::free(),
                "loggregator_ca_path": pki.ca_file(),
                "loggregator_cert_path": pki.client_cert_file(),
                "loggregator_key_path": pki.client_key_file(),
            },
        });
        let file = folder.join("locket.json");
        run::write(&file, config.to_string())?;
        let program = programs::set_up("locket", "locket")?;
        let mut locket = Self {
            process: Process::new(run, folder, program).arg("-config").arg(file),
            address,
        };
        locket.begin().await?;
        Ok(locket)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Program for Locket {
    has_process!();

    async fn answers(&self) -> bool {
        process::accepts(self.address).await
    }
}
