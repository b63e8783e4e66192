//! A stream that fails when nothing has moved for too long, and that ends gently.
//!
//! While something waits to be written, nothing but its being written counts as moving: whoever only sends keeps no
//! connection by that.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::delivery::Delivery;
use super::{LINGER_BUFFER, LINGER_BYTES, Limits, PREFACE};

/// Such a stream.
pub(super) struct Watched<S> {
    stream: S,
    limits: Limits,
    delivery: Arc<Delivery>,
    read: u64,
    /// Whether something waits to be written.
    blocked: bool,
    deadline: Pin<Box<Sleep>>,
    /// Once nothing more is written: bytes that may still be thrown away.
    lingering: Option<u64>,
}

impl<S> Watched<S> {
    /// With the time that headers may take to begin with; what is written counts for `delivery`.
    pub fn new(stream: S, limits: Limits, delivery: Arc<Delivery>) -> Watched<S> {
        let deadline = Box::pin(tokio::time::sleep(limits.headers));
        Watched { stream, limits, delivery, read: 0, blocked: false, deadline, lingering: None }
    }

    fn moved(&mut self) {
        let deadline = Instant::now() + self.limits.idle;
        self.deadline.as_mut().reset(deadline);
    }

    /// Throws away what the other side still sends, until it ends, or it is time, or too much.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<()>
    where
        S: AsyncRead + Unpin,
    {
        let mut bytes = [MaybeUninit::uninit(); LINGER_BUFFER];
        while let Some(left) = self.lingering.filter(|left| *left > 0) {
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingering = Some(left.saturating_sub(buffer.filled().len() as u64));
                }
                Poll::Ready(_) => break,
                Poll::Pending => return self.deadline.as_mut().poll(context),
            }
        }
        Poll::Ready(())
    }

    fn watch<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Something waits to be written.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if !self.blocked {
            self.blocked = true;
            let deadline = Instant::now() + self.limits.patience;
            self.deadline.as_mut().reset(deadline);
        }
        self.watch(context)
    }

    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.wait(context),
            Poll::Ready(result) => {
                if let Ok(bytes) = &result {
                    self.delivery.wrote(*bytes);
                }
                self.blocked = false;
                self.moved();
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.watch(context),
            Poll::Ready(result) => {
                self.read += (buffer.filled().len() - before) as u64;
                if self.read >= PREFACE && !self.blocked {
                    self.moved();
                }
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.wait(context),
            Poll::Ready(result) => {
                if self.blocked {
                    self.blocked = false;
                    self.moved();
                }
                Poll::Ready(result)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            match Pin::new(&mut self.stream).poll_shutdown(context) {
                Poll::Pending => return self.watch(context),
                Poll::Ready(result) => result?,
            }
            let until = Instant::now() + self.limits.linger;
            self.deadline.as_mut().reset(until);
            self.lingering = Some(LINGER_BYTES);
        }
        ready!(self.linger(context));
        Poll::Ready(Ok(()))
    }
}
