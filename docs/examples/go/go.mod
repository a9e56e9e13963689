module example.org/medusa-consumer

go 1.22
