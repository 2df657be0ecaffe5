"""Images and words over HTTP: engines that write ids, and one server in front of them."""
