"""The denoising loop: runs plans on engines. Knows nothing about the libraries behind them."""
