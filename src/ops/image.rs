//! [ImageDecoder](https://onnx.ai/onnx/operators/onnx__ImageDecoder.html): a picture from the bytes of its file.

use std::io::Cursor;
use std::sync::Arc;

use image::{ImageReader, Limits};

use super::slots::required;
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, TensorType};

/// The operators of this family.
pub const OPS: &[OpDef] = &[OpDef { domain: ONNX, name: "ImageDecoder", since: 20, parse: ImageDecoder::parse }];

/// Order of the channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Brightness alone.
    Gray,
}

/// Decodes JPEG, PNG, BMP and portable pixmaps to `uint8` of height × width × channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDecoder {
    /// Order of the channels.
    pub format: PixelFormat,
}

impl ImageDecoder {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let format = match attrs.string("pixel_format", "RGB")?.as_str() {
            "RGB" => PixelFormat::Rgb,
            "BGR" => PixelFormat::Bgr,
            "Grayscale" => PixelFormat::Gray,
            other => fail!("unknown pixel_format {other}"),
        };
        Ok(Arc::new(Self { format }))
    }
}

impl Op for ImageDecoder {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let channels = if self.format == PixelFormat::Gray { 1 } else { 3 };
        let dims = vec![Dim::Unknown, Dim::Unknown, Dim::Known(channels)];
        Ok(vec![Some(TensorType::new(DType::U8, dims))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let bytes = required(inputs, 0)?.slice::<u8>()?;
        let unreadable = |e: &dyn std::fmt::Display| Fault::new(format!("the picture cannot be decoded: {e}"));
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| unreadable(&e))?;
        match reader.format() {
            Some(format) if format.reading_enabled() => {}
            _ => return Err(Fault::unimplemented("pictures of this format")),
        }
        reader.limits(Limits::default());
        let picture = reader.decode().map_err(|e| unreadable(&e))?;
        let (height, width) = (picture.height() as usize, picture.width() as usize);
        let (channels, mut pixels) = match self.format {
            PixelFormat::Gray => (1, picture.into_luma8().into_raw()),
            _ => (3, picture.into_rgb8().into_raw()),
        };
        if self.format == PixelFormat::Bgr {
            pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
        }
        Ok(vec![Array::new(&[height, width, channels], pixels)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portable_pixmap() {
        let file = [b"P6 2 1 255\n".as_slice(), &[1, 2, 3, 4, 5, 6]].concat();
        let decode = |format| ImageDecoder { format }.float(&[Some(Array::vector(file.clone()))]);
        let rgb = decode(PixelFormat::Rgb).unwrap().remove(0);
        assert_eq!((rgb.shape(), rgb.slice::<u8>().unwrap()), (&[1usize, 2, 3][..], &[1u8, 2, 3, 4, 5, 6][..]));
        assert_eq!(decode(PixelFormat::Bgr).unwrap()[0].slice::<u8>().unwrap(), [3, 2, 1, 6, 5, 4]);
        let broken = ImageDecoder { format: PixelFormat::Rgb }.float(&[Some(Array::vector(b"P6 2 9".to_vec()))]);
        assert!(broken.is_err());
    }
}
