//! Makes Rust of the contracts: messages by prost, clients by tonic, into cargo's OUT_DIR.
//!
//! It reads the compiled descriptor set, so neither protoc nor Google's `.proto` files are needed.

use std::error::Error;
use std::fs;

use prost::Message;
use prost_types::FileDescriptorSet;

const DESCRIPTORS: &str = "../../gen/descriptors/marketprism.binpb";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={DESCRIPTORS}");
    let descriptors = FileDescriptorSet::decode(fs::read(DESCRIPTORS)?.as_slice())?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("contracts.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
