//! Connections of the simulated network, in the forms that tonic, hyper and axum want them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Uri;
use flatbed::dial::Dialer;
use flatbed_proto::reach::{Dial, InvalidAddress};
use futures::Stream;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Channel;
use tower::Service;
use turmoil::net::{TcpListener, TcpStream};

/// Where coordinators listen.
pub const RPC_PORT: u16 = 7070;
/// Where gateways listen.
pub const HTTP_PORT: u16 = 80;

/// A simulated connection.
pub struct Link(TcpStream);

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl tonic::transport::server::Connected for Link {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Opens connections to hosts by name.
#[derive(Clone, Copy)]
pub struct Connector;

impl Service<Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Link>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(HTTP_PORT))).await?;
            Ok(TokioIo::new(Link(stream)))
        })
    }
}

/// The deployed dialer, over the simulated network.
pub struct SimulatedDial;

impl Dial for SimulatedDial {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        let endpoint = Dialer::new(None, true).endpoint(address)?;
        Ok(endpoint.connect_with_connector_lazy(Connector))
    }
}

/// As [`SimulatedDial`], shared.
pub fn dial() -> Arc<dyn Dial> {
    Arc::new(SimulatedDial)
}

/// Listens on a port of the present host.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).await
}

/// What connects, for tonic.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Link>> {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Link(stream));
        Some((accepted, listener))
    })
}

/// What connects, for axum.
pub struct Door(pub TcpListener);

impl axum::serve::Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = self.0.accept().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
