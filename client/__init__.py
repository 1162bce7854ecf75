"""The thin asynchronous client: media in and out, segmentation, dispatch over gRPC, merge by timestamp."""
