"""What a forked worker runs: scanners and a reconciler, carrying values between chain, payments and store."""
