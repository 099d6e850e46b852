"""Where events come from: files, standard input, HTTP, brokers."""
