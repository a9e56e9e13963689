package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// refusal is an error that another attempt does not mend: Redis was reached, and said no, or we did.
type refusal string

func (r refusal) Error() string { return string(r) }

// redis is one connection. Source: the RESP2 specification.
type redis struct {
	conn   net.Conn
	reader *bufio.Reader
}

// dial connects to redis:// or rediss://, with the user, the password and the database of the address.
func dial(address string) (*redis, error) {
	where, err := url.Parse(address)
	if err != nil {
		return nil, refusal(err.Error())
	}
	host := where.Host
	if where.Port() == "" {
		host += ":6379"
	}
	dialer := &net.Dialer{Timeout: wait}
	var conn net.Conn
	switch where.Scheme {
	case "redis":
		conn, err = dialer.Dial("tcp", host)
	case "rediss":
		conn, err = tls.DialWithDialer(dialer, "tcp", host, nil)
	default:
		return nil, refusal(fmt.Sprintf("%q is no address of Redis: it is redis:// or rediss://", where.Scheme))
	}
	if err != nil {
		return nil, err
	}
	r := &redis{conn, bufio.NewReader(conn)}
	if secret, given := where.User.Password(); given {
		user := where.User.Username()
		if user == "" {
			user = "default"
		}
		_, err = r.ask("AUTH", user, secret)
	}
	if database := strings.Trim(where.Path, "/"); err == nil && database != "" {
		_, err = r.ask("SELECT", database)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// ask sends a command and reads its answer: string, int64, []any, or nil.
func (r *redis) ask(words ...string) (any, error) {
	if err := r.conn.SetDeadline(time.Now().Add(block + wait)); err != nil {
		return nil, err
	}
	var command strings.Builder
	fmt.Fprintf(&command, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&command, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(r.conn, command.String()); err != nil {
		return nil, err
	}
	return r.answer()
}

func (r *redis) answer() (any, error) {
	line, err := r.reader.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("an answer without a type")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+':
		return rest, nil
	case '-':
		return nil, refusal(rest)
	}
	number, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("an answer that is not of RESP2: %q", line)
	}
	switch {
	case kind == ':':
		return number, nil
	case number < 0:
		return nil, nil
	case kind == '$':
		data := make([]byte, number+2)
		_, err := io.ReadFull(r.reader, data)
		return string(data[:number]), err
	case kind == '*':
		items := make([]any, number)
		for i := range items {
			if items[i], err = r.answer(); err != nil {
				return nil, err
			}
		}
		return items, nil
	}
	return nil, fmt.Errorf("an answer that is not of RESP2: %q", line)
}

// entry is one of a stream; without fields if Redis has dropped it since.
type entry struct {
	id     string
	fields map[string]string
}

// entriesOf reads what XREADGROUP and XAUTOCLAIM answer for one stream.
func entriesOf(answer any) []entry {
	items, _ := answer.([]any)
	found := make([]entry, 0, len(items))
	for _, item := range items {
		pair, _ := item.([]any)
		if len(pair) != 2 {
			continue // claimed, and gone from the stream
		}
		id, _ := pair[0].(string)
		words, _ := pair[1].([]any)
		fields := make(map[string]string, len(words)/2)
		for i := 0; i+1 < len(words); i += 2 {
			name, _ := words[i].(string)
			fields[name], _ = words[i+1].(string)
		}
		found = append(found, entry{id, fields})
	}
	return found
}
