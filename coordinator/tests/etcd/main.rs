//! The store over real etcd servers. They need `etcd` and `etcdctl`: `apt-get install etcd-server etcd-client`.

mod cluster;
mod loading;
mod servers;
mod single;
