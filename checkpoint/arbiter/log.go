package arbiter

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns the logger that etcd wants, which writes to l. etcd tells much that matters only to etcd: its information
// becomes debug output, and its fatal errors are errors that reach the caller another way.
func newZap(l *slog.Logger) *zap.Logger {
	return zap.New(slogCore{l.With("from", "etcd")}, zap.WithFatalHook(zapcore.WriteThenGoexit))
}

// slogCore is a zapcore.Core on a slog.Logger.
type slogCore struct {
	l *slog.Logger
}

func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level <= zapcore.InfoLevel:
		return slog.LevelDebug
	case level == zapcore.WarnLevel:
		// Mostly etcd's advice about its own deployment.
		return slog.LevelDebug
	default:
		return slog.LevelError
	}
}

// Enabled is zapcore.Core's.
func (c slogCore) Enabled(level zapcore.Level) bool {
	return c.l.Enabled(context.Background(), slogLevel(level))
}

// With is zapcore.Core's.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.l.With(slogArgs(fields)...)}
}

// Check is zapcore.Core's.
func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write is zapcore.Core's.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.l.Log(context.Background(), slogLevel(e.Level), e.Message, slogArgs(fields)...)
	return nil
}

// Sync is zapcore.Core's.
func (slogCore) Sync() error { return nil }

func slogArgs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	args := make([]any, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		args = append(args, slog.Any(f.Key, enc.Fields[f.Key]))
	}
	return args
}
