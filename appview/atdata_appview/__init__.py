"""The AppView: network-wide questions about datasets, answered over XRPC and as web pages."""
