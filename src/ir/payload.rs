//! Where the bytes of a large tensor come from: elements read part by part, and payloads computed part by part, so that
//! neither is ever held as a whole.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::Tensor;
use crate::error::Fault;

/// The elements of a `float` tensor, decoded part by part from where they lie.
#[derive(Debug, Clone)]
pub struct Floats(Bytes);

impl Floats {
    /// The elements of this tensor; a fault if they are not `float` or were not loaded.
    pub fn of(tensor: &Tensor) -> Result<Self, Fault> {
        if let (super::DType::F32, Some(raw)) = (tensor.dtype(), tensor.raw()) {
            return Ok(Self(raw));
        }
        Ok(Self::from(tensor.array()?.slice::<f32>()?))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len() / size_of::<f32>()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of parts of `size` elements; the last may be shorter.
    pub fn parts(&self, size: usize) -> usize {
        self.len().div_ceil(size.max(1))
    }

    /// What `read` makes of one part.
    pub fn part<R>(&self, index: usize, size: usize, read: impl FnOnce(&[f32]) -> R) -> R {
        let start = (index * size).min(self.len());
        let end = start.saturating_add(size).min(self.len());
        let (chunks, _) = self.0[start * 4..end * 4].as_chunks::<4>();
        read(&chunks.iter().map(|c| f32::from_le_bytes(*c)).collect::<Vec<f32>>())
    }

    /// What `read` makes of each part, in order; several threads read.
    pub fn each<R: Send>(&self, size: usize, read: impl Fn(usize, &[f32]) -> R + Sync) -> Vec<R> {
        let parts = (0..self.parts(size)).into_par_iter();
        parts.map(|index| self.part(index, size, |part| read(index, part))).collect()
    }
}

impl From<&[f32]> for Floats {
    fn from(elements: &[f32]) -> Self {
        Self(elements.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// Computes one part of a payload.
type Part = dyn Fn(usize) -> Vec<u8> + Send + Sync;

/// Bytes that are computed whenever they are wanted, part by part.
#[derive(Clone)]
pub struct Deferred {
    length: usize,
    parts: usize,
    part: Arc<Part>,
}

impl Deferred {
    /// `length` bytes: what `part` returns for 0 to `parts`, one after the other. It must return the same every time.
    pub fn new(length: usize, parts: usize, part: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { length, parts, part: Arc::new(part) }
    }

    /// All bytes at once.
    pub fn bytes(&self) -> Bytes {
        let mut all = Vec::with_capacity(self.length);
        self.each(&mut |bytes| {
            all.extend_from_slice(bytes);
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        all.into()
    }

    /// Hands out the parts in order. Several threads compute, and only so many parts are held as they are ahead.
    fn each<E>(&self, take: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const AHEAD: usize = 32;
        for start in (0..self.parts).step_by(AHEAD) {
            let range = (start..(start + AHEAD).min(self.parts)).into_par_iter();
            let parts: Vec<Vec<u8>> = range.map(|index| (self.part)(index)).collect();
            parts.iter().try_for_each(|bytes| take(bytes))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Deferred {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} bytes in {} parts", self.length, self.parts)
    }
}

/// The payload of a tensor that is being written.
#[derive(Debug, Clone)]
pub enum Payload {
    /// It lies in memory or in a mapped file.
    Held(Bytes),
    /// It is computed while it is written.
    Computed(Deferred),
}

impl Payload {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Held(bytes) => bytes.len(),
            Self::Computed(deferred) => deferred.length,
        }
    }

    /// Has it no bytes?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the bytes.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Held(bytes) => out.write_all(bytes),
            Self::Computed(deferred) => deferred.each(&mut |bytes| out.write_all(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_whole() {
        let real: Vec<f32> = (0..1000).map(|i| i as f32 - 500.0).collect();
        let floats = Floats::from(real.as_slice());
        for size in [1, 7, 250, 999, 1000, 1001, usize::MAX / 8] {
            let parts = floats.each(size, |_, part| part.to_vec());
            assert_eq!(parts.concat(), real, "{size}");
            let (parts, inner) = (parts.len(), floats.clone());
            let deferred = Deferred::new(1000, parts, move |i| {
                inner.part(i, size, |part| part.iter().map(|&v| v as i8 as u8).collect())
            });
            let expected: Vec<u8> = real.iter().map(|&v| v as i8 as u8).collect();
            assert_eq!(deferred.bytes(), expected, "{size}");
            let mut written = Vec::new();
            Payload::Computed(deferred).write(&mut written).unwrap();
            assert_eq!(written, expected, "{size}");
        }
    }
}
