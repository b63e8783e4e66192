//! What a cluster stands on: etcd behind a fabric of proxies, and an object store.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::proxy::{Fault, Proxy};
use crate::servers::etcd::state_uri;
use crate::servers::{EtcdCluster, Garage, Variables};

/// Where files rest.
pub enum Objects {
    /// A folder of this machine.
    Folder(PathBuf),
    /// Garage, directly.
    Garage(Garage),
    /// Garage behind a proxy that can misbehave.
    ProxiedGarage(Garage, Proxy),
}

impl Objects {
    /// `--output`.
    pub fn output(&self, name: &str) -> String {
        match self {
            Objects::Folder(folder) => folder.join(name).display().to_string(),
            Objects::Garage(garage) | Objects::ProxiedGarage(garage, _) => garage.output(name),
        }
    }

    /// What the roles need in their environment.
    pub fn environment(&self) -> Variables {
        match self {
            Objects::Folder(_) => Variables::new(),
            Objects::Garage(garage) => garage.environment(),
            Objects::ProxiedGarage(garage, proxy) => garage.environment_through(proxy.port()),
        }
    }

    /// The proxy before the store, where there is one.
    pub fn proxy(&self) -> Option<&Proxy> {
        match self {
            Objects::ProxiedGarage(_, proxy) => Some(proxy),
            Objects::Folder(_) | Objects::Garage(_) => None,
        }
    }
}

/// A proxy between each coordinator and each etcd member, so that one coordinator can be cut off alone.
pub struct Fabric {
    proxies: Vec<Vec<Proxy>>,
    direct: Vec<u16>,
}

impl Fabric {
    /// No proxies: coordinators reach etcd directly.
    pub fn direct(etcd: &EtcdCluster) -> Fabric {
        Fabric { proxies: Vec::new(), direct: etcd.ports().to_vec() }
    }

    /// Proxies for so many coordinators.
    pub fn proxied(etcd: &EtcdCluster, coordinators: usize, seed: u64) -> Result<Fabric> {
        let to_all =
            |_| etcd.ports().iter().map(|port| Proxy::start(*port, seed)).collect::<Result<Vec<_>>>();
        let proxies = (0..coordinators).map(to_all).collect::<Result<_>>()?;
        Ok(Fabric { proxies, direct: etcd.ports().to_vec() })
    }

    /// `--state` of a coordinator.
    pub fn state_uri(&self, coordinator: usize, name: &str) -> String {
        match self.proxies.get(coordinator) {
            Some(proxies) => state_uri(&proxies.iter().map(Proxy::port).collect::<Vec<_>>(), name),
            None => state_uri(&self.direct, name),
        }
    }

    /// Lets a fault befall everything between a coordinator and etcd.
    pub fn inject(&self, coordinator: usize, fault: Fault) {
        self.proxies.get(coordinator).into_iter().flatten().for_each(|proxy| proxy.inject(fault));
    }

    /// No more faults.
    pub fn heal(&self) {
        self.proxies.iter().flatten().for_each(Proxy::heal);
    }
}

/// Everything that a cluster needs to run.
pub struct Backends {
    /// Holds the state.
    pub etcd: EtcdCluster,
    /// Between coordinators and etcd.
    pub fabric: Fabric,
    /// Holds the files.
    pub objects: Objects,
}

impl Backends {
    /// Three etcd members and Garage, without proxies.
    pub async fn plain(logs: &Path) -> Result<Backends> {
        let etcd = EtcdCluster::start(3, logs).await?;
        Ok(Backends {
            fabric: Fabric::direct(&etcd),
            etcd,
            objects: Objects::Garage(Garage::start(logs).await?),
        })
    }

    /// Three etcd members and Garage, with proxies before both, for so many coordinators.
    pub async fn proxied(coordinators: usize, seed: u64, logs: &Path) -> Result<Backends> {
        let etcd = EtcdCluster::start(3, logs).await?;
        let garage = Garage::start(logs).await?;
        let proxy = Proxy::start(garage.port(), seed)?;
        Ok(Backends {
            fabric: Fabric::proxied(&etcd, coordinators, seed)?,
            etcd,
            objects: Objects::ProxiedGarage(garage, proxy),
        })
    }

    /// Ends all faults and brings every etcd member back.
    pub async fn heal(&mut self) -> Result<()> {
        self.fabric.heal();
        if let Some(proxy) = self.objects.proxy() {
            proxy.heal();
        }
        self.etcd.heal().await
    }
}
