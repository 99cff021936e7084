"""The trusted WebAssembly runtime: find, measure, load and limit modules."""
