// SPDX-License-Identifier: Apache-2.0

//! Runs a model that holds LayerNormBackprop nodes from Rust, with the kernel library:
//!
//!     cargo run --release -- LIBRARY MODEL
//!
//! Inputs may be of float or int64. One of float gets 0.01, 0.02, ..., one of int64 0, 1, 0, 1, ...; a length that the
//! model leaves open is 2. The first elements of each output, which must be of float, are printed.

use std::process::ExitCode;

use ort::session::{Session, SessionInputValue};
use ort::value::{Outlet, Tensor, TensorElementType};

const MOST_PRINTED: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, model] = arguments.as_slice() else {
        eprintln!("usage: run_model LIBRARY MODEL");
        return ExitCode::from(2);
    };
    match run(library, model) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(library: &str, model: &str) -> ort::Result<()> {
    let mut session = Session::builder()?
        .with_operator_library(library)?
        .commit_from_file(model)?;
    let inputs = session
        .inputs()
        .iter()
        .map(|input| Ok((input.name().to_owned(), make_input(input)?)))
        .collect::<ort::Result<Vec<_>>>()?;
    for (name, output) in session.run(inputs)?.iter() {
        let (_, values) = output.try_extract_tensor::<f32>()?;
        print(name, values);
    }
    Ok(())
}

fn make_input(input: &Outlet) -> ort::Result<SessionInputValue<'static>> {
    let described = || format!("input {} is {}", input.name(), input.dtype());
    let shape = input.dtype().tensor_shape();
    let shape = shape.ok_or_else(|| ort::Error::new(described()))?;
    let shape: Vec<i64> = shape
        .iter()
        .map(|&length| if length < 0 { 2 } else { length })
        .collect();
    let count = shape.iter().product();
    match input.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let values: Vec<f32> = (0..count).map(|index| 0.01 * (index + 1) as f32).collect();
            Ok(Tensor::from_array((shape, values))?.into())
        }
        Some(TensorElementType::Int64) => {
            let values: Vec<i64> = (0..count).map(|index| index % 2).collect();
            Ok(Tensor::from_array((shape, values))?.into())
        }
        _ => Err(ort::Error::new(format!(
            "{}; it must be of float or int64",
            described()
        ))),
    }
}

fn print(name: &str, values: &[f32]) {
    let first: Vec<String> = values
        .iter()
        .take(MOST_PRINTED)
        .map(f32::to_string)
        .collect();
    let more = if values.len() > MOST_PRINTED {
        " ..."
    } else {
        ""
    };
    println!("{name}: {}{more}", first.join(" "));
}
