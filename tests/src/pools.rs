//! The pool of a host, of which there is one at most.

use serde_json::Value;

use crate::host::Host;
use crate::watch::until;

impl Host {
    /// The pool as `pool --list` shows it; null without one.
    #[track_caller]
    #[must_use]
    pub fn pool(&self) -> Value {
        self.minivmm(["pool", "--list", "--json"]).ok().json()[0].clone()
    }

    /// Waits until the pool has as many clones ready as it should.
    #[track_caller]
    pub fn until_pool_is_full(&self) {
        until("the pool is full", || {
            let pool = self.pool();
            pool["ready"].is_number() && pool["ready"] == pool["size"]
        });
    }
}
