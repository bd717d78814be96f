"""One file a method: `Params` and `stages`. The file name is the key (`method=<name>`)."""
