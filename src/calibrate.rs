//! From calibration data to clipping ranges: what every value of the graph was seen to hold, and where to cut it.

pub mod config;
pub mod exchange;
pub mod histogram;
pub mod observer;
pub mod read;
pub mod run;
pub mod table;
pub mod threshold;
pub mod write;
