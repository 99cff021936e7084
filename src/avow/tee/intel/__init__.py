"""What SGX and TDX share: the envelope of a quote, Intel's collateral, and who vouches for both."""
