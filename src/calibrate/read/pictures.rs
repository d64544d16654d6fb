//! Pictures as samples, by a [`Recipe`].

use std::io::BufReader;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::{InputSpec, open_regular};
use crate::calibrate::config::{Channels, Filter, Layout, MAX_SIDE, Recipe, Resize};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType};

/// The most pixels of a picture, read or resized.
const MAX_PIXELS: u64 = 1 << 26;
/// The longest file, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// The tensor made from a picture: 3-D, or 4-D with a batch axis if the rank of the input is not known.
pub fn read(path: &Path, recipe: &Recipe, input: &InputSpec) -> Result<Array, Fault> {
    let picture = decode(path)?;
    let picture = match recipe.channels {
        Channels::Gray => gray(picture),
        Channels::Rgb | Channels::Bgr => picture,
    };
    let picture = crop(resize(picture, recipe)?, recipe)?;
    let array = tensor(&picture, recipe, input.ty.dtype)?;
    match input.ty.rank() {
        Some(_) => Ok(array),
        None => array.reshaped(&[&[1], array.shape()].concat()),
    }
}

/// Decodes a PNG or JPEG file to RGB; an alpha channel is dropped. Limits are checked before the pixels are decoded.
fn decode(path: &Path) -> Result<RgbImage, Fault> {
    let broken = |error: &dyn std::fmt::Display| Fault::new(format!("the picture cannot be read: {error}"));
    let (file, size) = open_regular(path)?;
    if size > MAX_BYTES {
        fail!("a picture of {size} bytes; at most {MAX_BYTES} are read");
    }
    let mut reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|e| broken(&e))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        fail!("neither a PNG nor a JPEG picture");
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken(&e))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    Ok(DynamicImage::from_decoder(decoder).map_err(|e| broken(&e))?.into_rgb8())
}

fn check_size(width: u32, height: u32) -> Result<(), Fault> {
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_PIXELS {
        fail!("a picture of {width} × {height} pixels; 1 to {MAX_PIXELS} are possible");
    }
    Ok(())
}

/// Luma on all three channels, in 16-bit fixed point.
fn gray(mut picture: RgbImage) -> RgbImage {
    for pixel in picture.pixels_mut() {
        let [r, g, b] = pixel.0.map(u32::from);
        let luma = (19595 * r + 38470 * g + 7471 * b + (1 << 15)) >> 16;
        pixel.0 = [luma.min(255) as u8; 3];
    }
    picture
}

fn resize(picture: RgbImage, recipe: &Recipe) -> Result<RgbImage, Fault> {
    let (width, height) = picture.dimensions();
    let (new_width, new_height) = match recipe.resize {
        None => return Ok(picture),
        Some(Resize::Exact([width, height])) => (width, height),
        Some(Resize::Shorter(side)) => {
            // The longer side is rounded down, as torchvision does.
            let longer = u64::from(side) * u64::from(width.max(height)) / u64::from(width.min(height).max(1));
            let longer = u32::try_from(longer).unwrap_or(u32::MAX);
            if width < height { (side, longer) } else { (longer, side) }
        }
    };
    if (width, height) == (new_width, new_height) {
        return Ok(picture);
    }
    check_size(new_width, new_height)?;
    let filter = match recipe.filter {
        Filter::Nearest => FilterType::Nearest,
        Filter::Bilinear => FilterType::Triangle,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    Ok(imageops::resize(&picture, new_width, new_height, filter))
}

fn crop(picture: RgbImage, recipe: &Recipe) -> Result<RgbImage, Fault> {
    let Some([width, height]) = recipe.crop else { return Ok(picture) };
    let (Some(x), Some(y)) = (picture.width().checked_sub(width), picture.height().checked_sub(height))
    else {
        let (w, h) = picture.dimensions();
        let fault = format!("a picture of {w} × {h} pixels has no centre of {width} × {height}");
        return Err(Fault::new(fault).hint("resize it first: [preprocess] resize = …"));
    };
    // Half of an odd margin is rounded to even, as torchvision does.
    let half = |margin: u32| margin / 2 + u32::from(margin % 4 == 3);
    Ok(imageops::crop_imm(&picture, half(x), half(y), width, height).to_image())
}

fn tensor(picture: &RgbImage, recipe: &Recipe, dtype: DType) -> Result<Array, Fault> {
    let order: &[usize] = match recipe.channels {
        Channels::Rgb => &[0, 1, 2],
        Channels::Bgr => &[2, 1, 0],
        Channels::Gray => &[0],
    };
    let tables: Vec<[f64; 256]> = (0..order.len()).map(|c| table(recipe, c, dtype)).collect();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels = || picture.pixels().map(|pixel| pixel.0);
    let channel = |pixel: [u8; 3], (table, &c): (&[f64; 256], &usize)| {
        pixel.get(c).and_then(|&v| table.get(usize::from(v))).copied().unwrap_or_default()
    };
    let channels = || tables.iter().zip(order);
    let (shape, values): (_, Vec<f64>) = match recipe.layout {
        Layout::Nchw => {
            let planes = channels().flat_map(|c| pixels().map(move |pixel| channel(pixel, c)));
            ([order.len(), height, width], planes.collect())
        }
        Layout::Nhwc => {
            let points = pixels().flat_map(|pixel| channels().map(move |c| channel(pixel, c)));
            ([height, width, order.len()], points.collect())
        }
    };
    match dtype {
        DType::F32 => Array::new(&shape, values.into_iter().map(|v| v as f32).collect()),
        DType::U8 => Array::new(&shape, values.into_iter().map(|v| v.round_ties_even() as u8).collect()),
        other => Err(Fault::unimplemented(format_args!("pictures for an input of type {other}"))),
    }
}

/// What each pixel value becomes in a channel.
fn table(recipe: &Recipe, channel: usize, dtype: DType) -> [f64; 256] {
    let default_scale = if dtype == DType::U8 { 1.0 } else { 1.0 / 255.0 };
    let scale = recipe.scale.unwrap_or(default_scale);
    let pick = |values: &[f64], default| match values {
        [] => default,
        [one] => *one,
        many => many.get(channel).copied().unwrap_or(default),
    };
    let (mean, std) = (pick(&recipe.mean, 0.0), pick(&recipe.std, 1.0));
    std::array::from_fn(|value| (value as f64 * scale - mean) / std)
}
