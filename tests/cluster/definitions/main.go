// An API server of custom resources alone: Kubernetes' apiextensions-apiserver, which otherwise is
// a part of kube-apiserver and asks that one who its clients are. Here whoever has a client
// certificate may do everything, and all others nothing.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	definitions "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	discovery "k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	generic "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "apiextensions-apiserver:", err)
		os.Exit(1)
	}
}

func run() error {
	etcd := genericoptions.NewEtcdOptions(storagebackend.NewDefaultConfig(
		"/registry", apiserver.Codecs.LegacyCodec(v1.SchemeGroupVersion)))
	serving := genericoptions.NewSecureServingOptions().WithLoopback()
	certificates := genericoptions.ClientCertAuthenticationOptions{}
	flags := pflag.NewFlagSet("apiextensions-apiserver", pflag.ExitOnError)
	etcd.AddFlags(flags)
	serving.AddFlags(flags)
	certificates.AddFlags(flags)
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}

	config := generic.NewRecommendedConfig(apiserver.Codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	if err := etcd.ApplyTo(&config.Config); err != nil {
		return err
	}
	if err := serving.ApplyTo(&config.Config.SecureServing, &config.Config.LoopbackClientConfig); err != nil {
		return err
	}
	if err := admit(config, &certificates); err != nil {
		return err
	}
	enablement := genericoptions.NewAPIEnablementOptions()
	if err := enablement.ApplyTo(&config.Config, apiserver.DefaultAPIResourceConfigSource(), apiserver.Scheme); err != nil {
		return err
	}
	// It tells nobody which groups it serves: what stands before it does that.
	config.AggregatedDiscoveryGroupManager = discovery.NewResourceManager("apis")
	front := *config
	front.PostStartHooks = map[string]generic.PostStartHookConfigEntry{}
	namer := openapi.NewDefinitionNamer(apiserver.Scheme, scheme.Scheme)
	config.OpenAPIConfig = generic.DefaultOpenAPIConfig(definitions.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = generic.DefaultOpenAPIV3Config(definitions.GetOpenAPIDefinitions, namer)

	behind, err := (&apiserver.Config{
		GenericConfig: config,
		ExtraConfig: apiserver.ExtraConfig{
			CRDRESTOptionsGetter: options.NewCRDRESTOptionsGetter(
				*etcd, config.ResourceTransformers, config.StorageObjectCountTracker),
			ServiceResolver:     webhook.NewDefaultServiceResolver(),
			AuthResolverWrapper: webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, config.LoopbackClientConfig, nil),
		},
	}).Complete().New(generic.NewEmptyDelegate())
	if err != nil {
		return err
	}
	server, err := front.Complete().New("front", behind.GenericAPIServer)
	if err != nil {
		return err
	}
	return server.PrepareRun().RunWithContext(generic.SetupSignalContext())
}

// admit lets in whoever has a certificate of the CA.
func admit(config *generic.RecommendedConfig, certificates *genericoptions.ClientCertAuthenticationOptions) error {
	ca, err := certificates.GetClientCAContentProvider()
	if err != nil {
		return err
	}
	if ca == nil {
		return fmt.Errorf("--client-ca-file is missing")
	}
	if err := config.Authentication.ApplyClientCert(ca, config.SecureServing); err != nil {
		return err
	}
	authentication := authenticatorfactory.DelegatingAuthenticatorConfig{ClientCertificateCAContentProvider: ca}
	config.Authentication.Authenticator, _, err = authentication.New()
	config.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	return err
}
