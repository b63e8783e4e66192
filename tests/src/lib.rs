//! Harness of the suites in `tests/tests`: what the outcome of an export must be, worked out from the source's
//! files alone, and the means to run the real `flatbed` binary and look at what it did.
//!
//! Nothing here uses a flatbed crate: an oracle that shared code with what it judges would share its faults.
//! Reading order: [`lines`], [`lake`], [`oracle`], [`folder`], [`process`], [`lab`], [`server`], [`bulk`]; then the makers of
//! test data, [`population`], [`world`], [`replicate`] and [`real`]; then processes and what befalls them, [`daemon`], [`servers`], [`proxy`],
//! [`cluster`], [`chaos`]; then what the suite of the contract needs, [`conformance`], and clients with keys, [`smart`].

pub mod bulk;
pub mod chaos;
pub mod cluster;
pub mod conformance;
pub mod daemon;
pub mod folder;
pub mod lab;
pub mod lake;
pub mod lines;
pub mod oracle;
pub mod population;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod random;
pub mod real;
pub mod replicate;
pub mod scale;
pub mod server;
pub mod servers;
pub mod smart;
pub mod world;
