"""Around the owner of the device (`hotswap.swap`): what is wanted of it, what is on it and how it
got there, and what is known and counted of all that. No task here changes what is on the device."""
